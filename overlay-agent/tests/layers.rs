//! Which module may import which: a written order, held against the `use` lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Rooms, and the modules of each from the bottom up. A module imports from the lines before its own;
/// the room's `mod.rs`, which stands above all of them, may import any.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "datapath",
        &[
            "absence counters sys",
            "error",
            "attachment host packet_log pins",
            "maps netlink programs",
            "attach flusher tables",
            "load removal slow",
        ],
    ),
    ("view", &["ebpf flows kernel", "host"]),
];

/// The path of a module below the crate.
type Module = Vec<String>;
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// What each module of the crate imports of the others.
fn imports() -> Imports {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&source, &mut files);
    let texts: BTreeMap<Module, String> = files
        .iter()
        .map(|file| {
            let module = module(file.strip_prefix(&source).unwrap());
            (module, fs::read_to_string(file).unwrap())
        })
        .collect();
    let of = |module: &Module, text: &str| -> BTreeSet<Module> {
        let paths = uses(text).into_iter();
        paths
            .filter_map(|path| absolute(module, &path))
            .filter_map(|path| {
                let mut prefixes = (0..=path.len()).rev().map(|len| path[..len].to_vec());
                prefixes.find(|prefix| texts.contains_key(prefix))
            })
            .filter(|other| other != module)
            .collect()
    };
    texts
        .iter()
        .map(|(module, text)| (module.clone(), of(module, text)))
        .collect()
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `tc.rs` and `tc/mod.rs` are the same module.
fn module(file: &Path) -> Module {
    let path = file.with_extension("");
    let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
    let mut module: Module = parts.collect();
    module.pop_if(|last| last == "mod");
    module
}

/// The paths that the `use` declarations name, but for those of tests.
fn uses(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let mut paths = Vec::new();
    for statement in code.unwrap_or(text).split(';') {
        let statement = format!("\n{statement}");
        let declarations = ["\nuse ", "\npub use ", "\npub(super) use "];
        let tree = declarations
            .iter()
            .find_map(|declaration| Some(statement.split_once(declaration)?.1));
        if let Some(tree) = tree {
            expand("", tree, &mut paths);
        }
    }
    paths
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        paths.push(format!("{prefix}{path}"));
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let group = group.strip_suffix('}').expect("a closed group");
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &group[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !group[start..].trim().is_empty() {
        expand(&prefix, &group[start..], paths);
    }
}

/// The path from the crate on; `None` for those of other crates.
fn absolute(module: &Module, path: &str) -> Option<Module> {
    let mut parts = path.split("::").peekable();
    let mut absolute = match parts.next()? {
        "crate" => Module::new(),
        "self" => module.clone(),
        "super" => module[..module.len() - 1].to_vec(),
        _ => return None,
    };
    while parts.next_if_eq(&"super").is_some() {
        absolute.pop();
    }
    absolute.extend(parts.map(str::to_owned));
    Some(absolute)
}

fn is_in(module: &Module, room: &str) -> bool {
    module.first().is_some_and(|first| first == room)
}

#[test]
fn modules_of_a_room_import_only_from_the_layers_below() {
    let imports = imports();
    let mut wrong = Vec::new();
    for (room, layers) in ROOMS {
        let layer = |module: &Module| match module.get(1) {
            Some(name) => layers
                .iter()
                .position(|layer| layer.split(' ').any(|listed| listed == name))
                .unwrap_or_else(|| panic!("{room}::{name} is in no layer")),
            None => layers.len(),
        };
        for (module, imported) in imports.iter().filter(|(module, _)| is_in(module, room)) {
            let others = imported.iter().filter(|other| is_in(other, room));
            for other in others.filter(|other| other.get(1) != module.get(1)) {
                if layer(other) >= layer(module) {
                    wrong.push(format!(
                        "{} imports {}",
                        module.join("::"),
                        other.join("::")
                    ));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn no_module_of_a_room_imports_itself_by_way_of_others() {
    let imports = imports();
    for (room, _) in ROOMS {
        for start in imports.keys().filter(|module| is_in(module, room)) {
            let mut reached = BTreeSet::new();
            let mut pending = vec![start];
            while let Some(module) = pending.pop() {
                let others = imports[module].iter().filter(|other| is_in(other, room));
                pending.extend(others.filter(|&other| reached.insert(other)));
            }
            assert!(
                !reached.contains(start),
                "{} is in a circle",
                start.join("::")
            );
        }
    }
}
