//! The modules of a crate and what they import, read from its sources. Code for tests does not count.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemFn, ItemImpl, ItemMod, ItemUse, UseTree, Visibility,
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// Names from the root of the crate.
type Names = Vec<String>;

/// The modules of a crate, and who imports whom.
pub struct Crate {
    pub modules: Vec<Names>,
    pub imports: Vec<Import>,
}

/// A module that needs another one.
pub struct Import {
    pub from: Names,
    pub to: Names,
    /// File and line.
    pub place: String,
}

/// What is read before it is known which names are modules.
#[derive(Default)]
struct Reader {
    /// Each module, and what it hands out under which name.
    modules: BTreeMap<Names, BTreeMap<String, Names>>,
    mentions: Vec<(Names, Names, String)>,
}

impl Crate {
    pub fn read(package: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the workspace");
        let directory = root.join(package).join("src");
        let file = ["lib.rs", "main.rs"]
            .map(|name| directory.join(name))
            .into_iter()
            .find(|file| file.exists())
            .expect("a crate");
        let mut reader = Reader::default();
        reader.read(root, &file, &directory, Vec::new());
        let imports = reader.mentions.iter().filter_map(|(from, to, place)| {
            let to = reader.module_of(to, 0)?;
            (*from != to).then(|| Import {
                from: from.clone(),
                to,
                place: place.clone(),
            })
        });
        Self {
            imports: imports.collect(),
            modules: reader.modules.into_keys().collect(),
        }
    }

    /// The names of the modules directly in one.
    pub fn rooms(&self, of: &[String]) -> Vec<String> {
        let within = self.modules.iter().filter_map(|path| path.strip_prefix(of));
        let direct = within.filter_map(|path| match path {
            [name] => Some(name.clone()),
            _ => None,
        });
        direct.collect()
    }
}

impl Reader {
    /// Reads a file and those of the modules it declares, which are in `directory`.
    fn read(&mut self, root: &Path, file: &Path, directory: &Path, module: Names) {
        let text = fs::read_to_string(file).expect("a source file");
        let syntax =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.modules.insert(module.clone(), BTreeMap::new());
        for item in &syntax.items {
            if let Item::Mod(ItemMod {
                attrs,
                ident,
                content: None,
                ..
            }) = item
                && !is_for_tests(attrs)
            {
                let inner = directory.join(ident.to_string());
                let candidates: [PathBuf; 2] = [inner.with_extension("rs"), inner.join("mod.rs")];
                let file = candidates.iter().find(|file| file.exists());
                let mut module = module.clone();
                module.push(ident.to_string());
                self.read(root, file.expect("the module's file"), &inner, module);
            }
        }
        let file = file.strip_prefix(root).expect("in the workspace");
        FileVisitor {
            reader: self,
            file: file.display().to_string(),
            module,
        }
        .visit_file(&syntax);
    }

    /// The module in which something is defined that has this name.
    fn module_of(&self, names: &[String], depth: usize) -> Option<Names> {
        let known = (0..=names.len()).rev();
        let len = known
            .into_iter()
            .find(|len| self.modules.contains_key(&names[..*len]))?;
        let (module, rest) = names.split_at(len);
        let handed_out = rest.first().and_then(|name| self.modules[module].get(name));
        match handed_out {
            Some(target) if depth < 8 => self.module_of(target, depth + 1),
            _ => Some(module.to_vec()),
        }
    }
}

struct FileVisitor<'a> {
    reader: &'a mut Reader,
    file: String,
    module: Names,
}

impl FileVisitor<'_> {
    /// A path from the root of the crate; `None` for what is of other crates.
    fn absolute(&self, names: &[String]) -> Option<Names> {
        let (first, rest) = names.split_first()?;
        let mut path = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            _ => {
                let mut path = self.module.clone();
                path.push(first.clone());
                return self.reader.modules.contains_key(&path).then(|| {
                    path.extend_from_slice(rest);
                    path
                });
            }
        };
        for name in rest {
            if name == "super" {
                path.pop();
            } else {
                path.push(name.clone());
            }
        }
        Some(path)
    }

    fn mention(&mut self, names: &[String], line: usize) {
        if let Some(to) = self.absolute(names) {
            let place = format!("{}:{line}", self.file);
            self.reader.mentions.push((self.module.clone(), to, place));
        }
    }
}

impl<'ast> Visit<'ast> for FileVisitor<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if is_for_tests(&item.attrs) {
            return;
        }
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        let handed_out = !matches!(item.vis, Visibility::Inherited);
        for (names, alias, line) in paths {
            let target = self.absolute(&names).filter(|_| handed_out);
            // What a room hands out of its own files is not an import.
            match target.filter(|target| target.starts_with(&self.module)) {
                Some(target) => {
                    let module = self.reader.modules.get_mut(&self.module);
                    module.expect("being read").insert(alias, target);
                }
                None => self.mention(&names, line),
            }
        }
    }

    /// `pub(super)` needs nothing of the parent.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if matches!(names.first().map(String::as_str), Some("crate" | "super")) {
            self.mention(&names, path.span().start().line);
        }
        visit::visit_path(self, path);
    }
}

/// Each path of a `use`, the name it gets, and its line.
fn flatten(tree: &UseTree, prefix: &mut Names, paths: &mut Vec<(Names, String, usize)>) {
    let line = tree.span().start().line;
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, paths);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            let alias = prefix.last().cloned().unwrap_or_default();
            paths.push((prefix.clone(), alias, line));
        }
        UseTree::Name(name) => {
            let mut names = prefix.clone();
            names.push(name.ident.to_string());
            paths.push((names, name.ident.to_string(), line));
        }
        UseTree::Rename(rename) => {
            let mut names = prefix.clone();
            names.push(rename.ident.to_string());
            paths.push((names, rename.rename.to_string(), line));
        }
        UseTree::Glob(_) => paths.push((prefix.clone(), "*".to_owned(), line)),
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, paths);
            }
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|condition| condition.is_ident("test"))
    })
}
