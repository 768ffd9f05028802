//! What a store does not give is not known, and never taken for absent: in what the agent looks at, and in what `watch` does.

use crate::faults::{Fault, Faulty};
use crate::world::{World, name};
use blackstart::agent::{Seen, observe};
use blackstart::bridge::Store;
use blackstart::operations::Open;
use blackstart::operations::backup::{self, Options};
use blackstart::operations::evidence::Level;
use blackstart::operations::watch::{self, Bounds, Cause};
use blackstart::repository::layout::SourceName;
use blackstart::source::Source;
use blackstart::source::files::{Files, FilesOptions};
use blackstart::storage::Kind;
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

/// Where the store is silent: in which operation, on what, and how.
const SILENCES: [(&str, &str, Kind); 6] = [
    ("get", "snapshots/tree/0000000002", Kind::Other),
    ("get", "snapshots/tree/", Kind::Transient),
    ("list", "snapshots/tree/", Kind::Denied),
    ("list", "snapshots/tree/", Kind::Transient),
    ("list", "drills/tree/", Kind::Other),
    ("get", "drills/tree/0000000002", Kind::Denied),
];

fn world() -> (World, Memory) {
    let memory = Memory::default();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    fs::write(dir.path().join("tree/file"), "one").unwrap();
    (World::on(Store::new(Arc::new(memory.clone())).unwrap(), dir), memory)
}

fn back_up(world: &World, source: &str) {
    let open = || -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(Files::open(&world.path("tree"), FilesOptions::default(), &*world.host.open.clock)?))
    };
    backup::backup(&world.host, &name(source), &open, Options::default()).unwrap();
}

/// The same repository over a store that is silent there.
fn silent(world: &World, memory: &Memory, (operation, area, kind): (&'static str, &'static str, Kind)) -> Open {
    let store = Store::new(Faulty::new(memory.clone(), Fault::Silent(operation, area, kind))).unwrap();
    Open { store, ..world.host.open.clone() }
}

/// Sources of which a drill with the engine is promised.
fn promised(sources: &[&str]) -> BTreeMap<SourceName, BTreeSet<Level>> {
    sources.iter().map(|source| (name(source), BTreeSet::from([Level::Engine]))).collect()
}

/// As it is of `tree`, but for the looks themselves.
fn known(seen: &BTreeMap<SourceName, Seen>) -> Seen {
    let mut known = seen[&name("tree")].clone();
    (known.looked, known.unread) = (None, None);
    known
}

#[test]
fn the_agent_keeps_what_it_knows_of_a_source_that_cannot_be_read_and_looks_at_the_others() {
    let (world, memory) = world();
    let open = &world.host.open;
    // The one that falls silent has others before and behind it.
    let sources = promised(&["other", "tree", "zoo"]);
    sources.keys().for_each(|source| back_up(&world, source.as_str()));
    world.drill("tree").unwrap();
    let first = observe(open, &sources, &BTreeMap::new()).unwrap();
    sources.keys().for_each(|source| back_up(&world, source.as_str()));
    world.drill("tree").unwrap();
    let second = observe(open, &sources, &first).unwrap();
    assert_eq!(second[&name("tree")].newest.as_ref().unwrap().seq, 2);
    for silence in SILENCES {
        let broken = silent(&world, &memory, silence);
        let once = observe(&broken, &sources, &first).unwrap();
        let tree = &once[&name("tree")];
        let unread = tree.unread.as_ref().unwrap_or_else(|| panic!("{silence:?}: it is taken for read"));
        assert!(unread.why.contains("a bad sector"), "{silence:?}: {}", unread.why);
        assert_eq!(tree.looked, first[&name("tree")].looked, "{silence:?}: the age of what is known");
        assert!(
            tree.newest.is_some() && !tree.drills.is_empty() && tree.verified.newest.is_some(),
            "{silence:?}: {tree:?}"
        );
        if silence.1.starts_with("snapshots") {
            assert_eq!(known(&once), known(&first), "{silence:?}: what is known stays");
        }
        for other in ["other", "zoo"] {
            let other = &once[&name(other)];
            assert!(other.unread.is_none() && other.newest.as_ref().unwrap().seq == 2, "{silence:?}: {other:?}");
        }
        // It stays silent: since when does not move. Then it speaks again, and all is known.
        let twice = observe(&broken, &sources, &once).unwrap();
        assert_eq!(twice[&name("tree")].unread.as_ref().unwrap().since, unread.since, "{silence:?}");
        let well = observe(open, &sources, &twice).unwrap();
        assert!(well[&name("tree")].unread.is_none(), "{silence:?}");
        assert_eq!(known(&well), known(&second), "{silence:?}: all is known again");
        // Nothing was known before: then nothing is.
        let unknown = observe(&broken, &sources, &BTreeMap::new()).unwrap();
        assert!(unknown[&name("tree")].looked.is_none() && unknown[&name("tree")].unread.is_some(), "{silence:?}");
    }
    // A store that answers for none of them is out of reach.
    let gone = silent(&world, &memory, ("list", "", Kind::Transient));
    observe(&gone, &sources, &first).unwrap_err();
    observe(&gone, &promised(&["tree"]), &first).unwrap_err();
}

#[test]
fn a_store_without_room_is_told_with_what_to_do() {
    let (mut world, memory) = world();
    let faulty = Faulty::new(memory, Fault::Silent("create", "packs/", Kind::Full));
    world.host.open.store = Store::new(faulty).unwrap();
    let error = world.backup_files(&world.path("tree"), Options::default()).unwrap_err();
    assert!(format!("{error:#}").contains("no space left in the store"), "{error:#}");
    let help = blackstart::error::help_of(&error).unwrap_or_default();
    assert!(help.contains("until there is room") && help.contains("`blackstart prune tree`"), "{help}");
}

#[test]
fn watch_raises_just_that_it_cannot_read_and_looks_at_the_others() {
    let (world, memory) = world();
    let open = &world.host.open;
    for source in ["tree", "other"] {
        back_up(&world, source);
        back_up(&world, source);
    }
    world.drill("tree").unwrap();
    world.drill("tree").unwrap();
    let day = SignedDuration::from_hours(24);
    let bounds = Bounds { newest: day, of_source: BTreeMap::new(), verified: None };
    let mut seen = watch::Seen::default();
    let well = watch::look(open, &seen, &bounds, &[]).unwrap();
    assert_eq!(watch::judge(&well, &bounds, open.now()), []);
    watch::remember(&mut seen, &well);
    let proven = Bounds { verified: Some(day), ..bounds.clone() };
    for silence in SILENCES {
        // Drills are looked at only where there is a bound on them.
        let bounds = if silence.1.starts_with("drills") { &proven } else { &bounds };
        let sights = watch::look(&silent(&world, &memory, silence), &seen, bounds, &[]).unwrap();
        let alarms = watch::judge(&sights, bounds, open.now());
        let of_tree: Vec<Cause> = alarms.iter().filter(|a| a.source == name("tree")).map(|a| a.cause).collect();
        assert_eq!(
            of_tree,
            [Cause::Unread],
            "{silence:?}: nothing is stale, damaged, missing or rolled back: {alarms:?}"
        );
        let other: Vec<Cause> = alarms.iter().filter(|a| a.source == name("other")).map(|a| a.cause).collect();
        let expected: &[Cause] = if bounds.verified.is_some() { &[Cause::Unproven] } else { &[] };
        assert_eq!(other, expected, "{silence:?}: the other is looked at as ever");
        let mut after = seen.clone();
        watch::remember(&mut after, &sights);
        assert_eq!(after, seen, "{silence:?}: what was seen before is remembered");
    }
    watch::look(&silent(&world, &memory, ("list", "snapshots/", Kind::Transient)), &seen, &bounds, &[]).unwrap_err();
}
