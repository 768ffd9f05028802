//! What each key opens, and what it does not.

use super::world::{World, assert_same_tree, name};
use blackstart::error::{Kind, kind_of};
use blackstart::operations::backup::Options;
use blackstart::operations::restore::{self, Pick, Request};
use blackstart::repository::agefile::{self, Identity};
use blackstart::repository::keys::{KeyFile, KeyPair};
use blackstart::repository::series;
use blackstart::repository::trust::TrustRecord;
use std::fs;
use std::path::{Path, PathBuf};

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() { found.extend(files_below(&entry)) } else { found.push(entry) }
    }
    found
}

fn world() -> World {
    let world = World::local();
    fs::create_dir(world.path("data")).unwrap();
    for n in 0..3 {
        fs::write(world.path("data/file"), format!("secret {n}")).unwrap();
        world.backup_files(&world.path("data"), Options::default()).unwrap();
    }
    world
}

#[test]
fn the_host_cannot_read_its_past() {
    let world = world();
    // Whatever lies on the host: its key file, and its state as raw bytes.
    fs::write(world.path("state/host.key"), world.host.keys.to_text("host").as_bytes()).unwrap();
    let mut identities: Vec<Identity> = Vec::new();
    for file in files_below(&world.path("state")) {
        let bytes = fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        identities.extend(text.split(['"', '\n', ' ', ',']).filter_map(|word| word.trim().parse::<Identity>().ok()));
        identities.extend(KeyFile::read(&file).into_iter().flat_map(|k| k.identities));
    }
    assert!(!identities.is_empty());
    let store = &world.host.open.store;
    let packs = store.list("packs/").unwrap();
    assert!(packs.len() >= 3);
    for pack in packs {
        let error = agefile::open(&mut store.get(&pack.key).unwrap().to_vec(), &identities).unwrap_err();
        assert_eq!(kind_of(&error), Kind::WrongKey, "{error:#}");
    }
    for object in store.list("index/").unwrap() {
        agefile::open(&mut store.get(&object.key).unwrap().to_vec(), &identities).unwrap();
    }
}

#[test]
fn another_recovery_key_is_a_wrong_key() {
    let world = world();
    let (commit, snapshot) = restore::find(&world.host.open, &name("tree"), &Pick::Latest).unwrap();
    let request = Request::new(world.path("out"), 2);
    // The host's own key opens the index, and must fail at the first pack.
    for identity in [KeyPair::generate().unwrap().identity, world.host.keys.identity.clone()] {
        let error = restore::restore(&world.host.open, &[identity], &commit, &snapshot, &request).unwrap_err();
        assert_eq!(kind_of(&error), Kind::WrongKey, "{error:#}");
        assert!(!world.path("out").exists());
    }
    // With the right key the same command goes on.
    world.restore("tree", &Pick::Latest, "out").unwrap();
    assert_same_tree(&world.path("data"), &world.path("out"));
}

#[test]
fn new_recipients_get_a_baseline_that_refers_to_nothing_older() {
    let mut world = world();
    let next = KeyPair::generate().unwrap();
    let record = TrustRecord { recipients: vec![next.identity.to_public().to_string()], ..TrustRecord::default() };
    let (store, now) = (world.host.open.store.clone(), world.host.open.now());
    let older_trust = world.host.open.trust.clone();
    world.host.open.trust.append(&store, &world.recovery.signing, record, now).unwrap();
    let older: Vec<_> = ["packs/", "index/"].iter().flat_map(|a| store.list(a).unwrap()).map(|o| o.key).collect();
    let report = world.backup_files(&world.path("data"), Options::default()).unwrap();
    assert!(report.why.starts_with("baseline: the recipients"), "{}", report.why);
    let (commit, snapshot) = restore::find(&world.host.open, &name("tree"), &Pick::Latest).unwrap();
    let named = series::packs_of(&store, &snapshot).unwrap();
    let names = named.keys().chain(series::index_objects(&snapshot).map(|(hash, _)| hash)).copied();
    for hash in names {
        assert!(!older.iter().any(|key| key.as_str().ends_with(&hash.to_string())), "{hash} is from before");
    }
    let request = Request::new(world.path("new"), 2);
    restore::restore(&world.host.open, &[next.identity], &commit, &snapshot, &request).unwrap();
    assert_same_tree(&world.path("data"), &world.path("new"));
    assert_eq!(kind_of(&world.restore("tree", &Pick::Latest, "old-key").unwrap_err()), Kind::WrongKey);
    world.restore("tree", &Pick::Seq(3), "old").unwrap();

    // Who sees a trust chain that ends before the epoch in use must not write to the recipients of old.
    world.host.open.trust = older_trust;
    let error = world.backup_files(&world.path("data"), Options::default()).unwrap_err();
    assert!(format!("{error:#}").contains("epoch"), "{error:#}");
}
