//! `layers.txt` says which module may import which; this compares it with the sources. Below that, the
//! files of one room import each other in no circle.

mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use sources::{Crate, Import};

const LIST: &str = include_str!("layers.txt");

static CRATES: LazyLock<Vec<Layers>> = LazyLock::new(layers);

/// A crate and its layers.
struct Layers {
    package: &'static str,
    sources: Crate,
    /// Number of the layer, from above.
    places: BTreeMap<&'static str, usize>,
}

fn layers() -> Vec<Layers> {
    let mut all: Vec<Layers> = Vec::new();
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    for (number, line) in lines.enumerate() {
        if let Some(package) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            all.push(Layers {
                package,
                sources: Crate::read(package),
                places: BTreeMap::new(),
            });
            continue;
        }
        for module in line.split_whitespace() {
            let crate_ = all.last_mut().expect("a crate before its layers");
            let twice = crate_.places.insert(module, number);
            assert_eq!(twice, None, "{module} is listed twice");
        }
    }
    all
}

#[test]
fn imports_go_down_the_layers() {
    let mut wrong = BTreeSet::new();
    for Layers {
        package,
        sources,
        places,
    } in &*CRATES
    {
        let modules: BTreeSet<_> = sources.rooms(&[]).into_iter().collect();
        let listed: BTreeSet<_> = places.keys().map(ToString::to_string).collect();
        assert_eq!(modules, listed, "the modules of {package} and their list");
        for Import { from, to, place } in &sources.imports {
            if let ([from, ..], [to, ..]) = (&from[..], &to[..])
                && from != to
                && places[&**from] >= places[&**to]
            {
                wrong.insert(format!(
                    "{place}: {from} imports {to}, which is not below it"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_of_a_room_import_each_other_in_no_circle() {
    let mut wrong = Vec::new();
    for Layers { sources, .. } in &*CRATES {
        for room in sources.modules.iter().filter(|room| !room.is_empty()) {
            wrong.extend(circle(sources, room));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The imports that form circles among the files of a room, its own file among them.
fn circle(sources: &Crate, room: &[String]) -> Vec<String> {
    const OWN: &str = "mod";
    let mut edges = BTreeMap::new();
    for Import { from, to, place } in &sources.imports {
        if let (Some(from), Some(to)) = (from.strip_prefix(room), to.strip_prefix(room)) {
            let part = |path: &[String]| path.first().map_or(OWN, String::as_str).to_owned();
            let (from, to) = (part(from), part(to));
            if from != to {
                let text = format!("{place}: {from} imports {to}");
                edges.insert((from, to), text);
            }
        }
    }
    // What nobody imports, and what imports nobody, is in no circle.
    loop {
        let froms: BTreeSet<_> = edges.keys().map(|(from, _)| from.clone()).collect();
        let tos: BTreeSet<_> = edges.keys().map(|(_, to)| to.clone()).collect();
        let before = edges.len();
        edges.retain(|(from, to), _| tos.contains(from) && froms.contains(to));
        if edges.len() == before {
            return edges.into_values().collect();
        }
    }
}
