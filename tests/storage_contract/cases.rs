//! The contract of `Storage`, as seen through `Store`.

use blackstart::bridge::Store;
use blackstart::storage::probe::{Capabilities, Support};
use blackstart::storage::{Key, Kind, Result, Version};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::thread;

pub fn key(name: &str) -> Key {
    Key::new(name)
}

pub fn create(store: &Store, name: &str, body: impl Into<Bytes>) -> Result<Version> {
    let body = body.into();
    let sha256 = Sha256::digest(&body).into();
    store.create(&key(name), body, &sha256)
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind
}

fn names(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().into_iter().map(|object| object.key.to_string()).collect()
}

/// Bytes that do not compress and differ from place to place.
pub fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub fn create_never_overwrites(store: &Store) {
    let version = create(store, "snapshots/orders/0000000001", "first").unwrap();
    assert_eq!(kind(create(store, "snapshots/orders/0000000001", "second")), Kind::AlreadyExists);
    let (body, seen) = store.get_versioned(&key("snapshots/orders/0000000001")).unwrap();
    assert_eq!((body, seen), (Bytes::from("first"), version));
}

pub fn create_after_delete(store: &Store) {
    create(store, "a/b", "first").unwrap();
    store.delete(&key("a/b")).unwrap();
    create(store, "a/b", "second").unwrap();
    assert_eq!(store.get(&key("a/b")).unwrap(), "second");
}

pub fn replace_compares_versions(store: &Store) {
    let lease = key("leases/orders");
    let first = create(store, "leases/orders", "one").unwrap();
    let second = store.replace(&lease, &first, "two".into()).unwrap();
    assert_ne!(first, second);
    assert_eq!(kind(store.replace(&lease, &first, "three".into())), Kind::Conflict);
    assert_eq!(store.get_versioned(&lease).unwrap(), (Bytes::from("two"), second.clone()));
    let fourth = store.replace(&lease, &second, "four".into()).unwrap();
    assert_eq!(store.get(&lease).unwrap(), "four");
    assert_eq!(kind(store.replace(&lease, &fourth, noise(65 << 10))), Kind::Other);
}

pub fn replace_of_a_missing_key_conflicts(store: &Store) {
    let version = create(store, "leases/orders", "one").unwrap();
    assert_eq!(kind(store.replace(&key("leases/other"), &version, "two".into())), Kind::Conflict);
    store.delete(&key("leases/orders")).unwrap();
    assert_eq!(kind(store.replace(&key("leases/orders"), &version, "two".into())), Kind::Conflict);
    assert!(names(store, "").is_empty());
}

pub fn ranges_are_exact(store: &Store) {
    let body = noise(100_000);
    create(store, "packs/a", body.clone()).unwrap();
    create(store, "packs/empty", "").unwrap();
    for range in [0..1, 0..100_000, 99_999..100_000, 500..70_000, 0..0, 100_000..100_000] {
        let wanted = body.slice(range.start as usize..range.end as usize);
        assert_eq!(store.get_range(&key("packs/a"), range.clone()).unwrap(), wanted, "{range:?}");
    }
    for range in [0..100_001, 99_999..100_001, 100_000..100_001, 200_000..200_001, 100_001..100_001] {
        assert_eq!(kind(store.get_range(&key("packs/a"), range.clone())), Kind::Truncated, "{range:?}");
    }
    assert_eq!(store.get_range(&key("packs/empty"), 0..0).unwrap(), "");
    assert_eq!(kind(store.get_range(&key("packs/empty"), 0..1)), Kind::Truncated);
    #[expect(clippy::reversed_empty_ranges, reason = "the very thing to refuse")]
    let backwards = 5..3;
    assert_eq!(kind(store.get_range(&key("packs/a"), backwards)), Kind::Other);
    assert_eq!(kind(store.get_range(&key("packs/a"), 0..1 << 40)), Kind::Other);
}

pub fn listings_are_sorted_and_filtered(store: &Store) {
    let all = ["a-b/c", "a.b", "a/b", "a/b-c", "a/bc/d", "a0", "ab/c", "b", "packs/orders/ab/x", "packs/orders2/ab/x"];
    for name in all.iter().rev() {
        create(store, name, *name).unwrap();
    }
    assert_eq!(names(store, ""), all);
    assert_eq!(names(store, "a/"), ["a/b", "a/b-c", "a/bc/d"]);
    assert_eq!(names(store, "a/b"), ["a/b", "a/b-c", "a/bc/d"]);
    assert_eq!(names(store, "a"), &all[..7]);
    assert_eq!(names(store, "packs/orders/"), ["packs/orders/ab/x"]);
    assert_eq!(names(store, "packs/ord"), ["packs/orders/ab/x", "packs/orders2/ab/x"]);
    assert!(names(store, "packs/orders3/").is_empty());
    assert!(names(store, "b/").is_empty());
    let rows = store.list("packs/orders/").unwrap();
    assert_eq!(rows[0].size, 17);
    #[expect(clippy::disallowed_methods, reason = "the store has its own clock too")]
    let age = jiff::Timestamp::now().duration_since(rows[0].modified);
    assert!(age.as_secs().abs() < 60, "modified {age:?} ago");
}

/// Whatever the size of the pages, one after the other they give what the whole listing gives.
pub fn pages_begin_behind_any_place(store: &Store) {
    let all =
        ["log/1/a/0001", "log/1/a/0001-0005", "log/1/a/0002", "log/1/b/0002", "log/2/a/0001", "log/x", "logs/1", "lot"];
    for name in all {
        create(store, name, name).unwrap();
    }
    let page = |prefix: &str, after: &str, most: usize| {
        let page = store.list_page(prefix, after, most).unwrap();
        (page.rows.iter().map(|kept| kept.key.to_string()).collect::<Vec<_>>(), page.next)
    };
    for most in [1, 2, 3, 20] {
        let (mut found, mut from) = (Vec::new(), Some("log/".to_owned()));
        while let Some(after) = from {
            let (names, next) = page("log/", &after, most);
            assert!(names.len() <= most && next.as_ref().is_none_or(|next| *next > after), "{names:?} {next:?}");
            found.extend(names);
            from = next;
        }
        assert_eq!(found, &all[..6], "pages of {most}");
    }
    for (prefix, after, first) in [
        ("log/", "log/1/a0", Some("log/1/b/0002")),
        ("log/", "log/1/a/0001~", Some("log/1/a/0002")),
        ("log/", "log/1/a/0001", Some("log/1/a/0001-0005")),
        ("log/", "log/1/b/0002", Some("log/2/a/0001")),
        ("log/1/a/", "log/1/a/0002~", None),
        ("log/", "log/x", None),
        ("log", "log/x", Some("logs/1")),
        ("none/", "none/", None),
    ] {
        let found = page(prefix, after, 1).0;
        assert_eq!(found.first().map(String::as_str), first, "the first of {prefix} behind {after}");
    }
}

pub fn long_listings_are_whole(store: &Store, many: usize) {
    let wanted: BTreeSet<_> = (0..many).map(|n| format!("packs/orders/{:02x}/{n:04}", n % 16)).collect();
    for name in &wanted {
        create(store, name, "").unwrap();
    }
    assert_eq!(names(store, "packs/orders/"), Vec::from_iter(wanted));
}

pub fn bodies_of_all_sizes(store: &Store) {
    for (name, length) in [("empty", 0), ("byte", 1), ("odd", 65_537), ("pack", 16 << 20)] {
        let body = noise(length);
        create(store, name, body.clone()).unwrap();
        assert!(store.get(&key(name)).unwrap() == body, "{name} came back changed");
        assert_eq!(store.list(name).unwrap()[0].size, length as u64);
    }
    let too_large = Bytes::from(vec![0; blackstart::limits::OBJECT_MAX + 1]);
    assert_eq!(kind(create(store, "huge", too_large)), Kind::Other);
    assert!(names(store, "huge").is_empty());
}

pub fn delete_twice(store: &Store) {
    create(store, "a/b", "body").unwrap();
    create(store, "a/b.c", "neighbour").unwrap();
    store.delete(&key("a/b")).unwrap();
    store.delete(&key("a/b")).unwrap();
    store.delete(&key("never/was")).unwrap();
    // What is only a part of other keys is no object.
    store.delete(&key("a")).unwrap();
    store.delete(&key("a/b.c/d")).unwrap();
    assert_eq!(names(store, ""), ["a/b.c"]);
}

pub fn of_sixteen_creators_one_wins(store: &Store) {
    let results: Vec<_> = thread::scope(|scope| {
        let creators: Vec<_> =
            (0..16).map(|n| scope.spawn(move || (n, create(store, "snapshots/a/1", format!("body {n}"))))).collect();
        creators.into_iter().map(|creator| creator.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, result)| result.is_ok());
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(lost.iter().all(|(_, result)| result.as_ref().unwrap_err().kind == Kind::AlreadyExists), "{lost:?}");
    assert_eq!(store.get(&key("snapshots/a/1")).unwrap(), format!("body {}", won[0].0));
}

pub fn of_eight_replacers_one_wins(store: &Store) {
    let seen = create(store, "leases/a", "nobody").unwrap();
    let lease = key("leases/a");
    let replaced: Vec<_> = thread::scope(|scope| {
        let (lease, seen) = (&lease, &seen);
        let replacers: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || (n, store.replace(lease, seen, format!("holder {n}").into()))))
            .collect();
        replacers.into_iter().map(|replacer| replacer.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = replaced.into_iter().partition(|(_, result)| result.is_ok());
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(lost.iter().all(|(_, result)| result.as_ref().unwrap_err().kind == Kind::Conflict), "{lost:?}");
    assert_eq!(store.get(&lease).unwrap(), format!("holder {}", won[0].0));
}

pub fn missing_objects_are_not_found(store: &Store) {
    assert_eq!(kind(store.get(&key("no/such"))), Kind::NotFound);
    assert_eq!(kind(store.get_range(&key("no/such"), 0..1)), Kind::NotFound);
    assert_eq!(kind(store.get_range(&key("no/such"), 0..0)), Kind::NotFound);
    create(store, "a/b", "").unwrap();
    assert_eq!(kind(store.get(&key("a"))), Kind::NotFound);
    assert_eq!(kind(store.get(&key("a/b/c"))), Kind::NotFound);
    assert!(names(store, "no/").is_empty());
}

/// Of every store: each object has one version at least, which reads as the object does.
pub fn versions_agree_with_the_listing(store: &Store) {
    for name in ["a/b", "a/c", "b"] {
        create(store, name, name).unwrap();
    }
    let version = create(store, "leases/a", "one").unwrap();
    store.replace(&key("leases/a"), &version, "two".into()).unwrap();
    let all = store.list_versions("").unwrap();
    let current: Vec<_> = all.iter().filter(|kept| kept.current && !kept.marker).collect();
    let listed = store.list("").unwrap();
    assert_eq!(
        current.iter().map(|kept| &kept.key).collect::<Vec<_>>(),
        listed.iter().map(|o| &o.key).collect::<Vec<_>>()
    );
    for (kept, object) in current.iter().zip(&listed) {
        assert_eq!((kept.size, kept.modified), (object.size, object.modified), "{}", kept.key);
        assert_eq!(store.get_version(&kept.key, &kept.id).unwrap(), store.get(&kept.key).unwrap());
    }
    assert_eq!(store.list_versions("a/").unwrap().len(), 2);
    for name in ["a/b", "a/c", "b", "leases/a"] {
        store.delete(&key(name)).unwrap();
    }
    assert_eq!(store.list_versions("").unwrap(), []);
}

/// Of stores that keep versions: the oldest comes first, and stays until it is deleted itself.
pub fn old_versions_stay(store: &Store) {
    let lease = key("leases/a");
    let mut version = create(store, "leases/a", "body 0").unwrap();
    for n in 1..10 {
        version = store.replace(&lease, &version, format!("body {n}").into()).unwrap();
    }
    create(store, "leases/a.b", "neighbour").unwrap();
    let of_lease =
        || -> Vec<_> { store.list_versions("leases/").unwrap().into_iter().filter(|kept| kept.key == lease).collect() };
    let all = of_lease();
    let bodies: Vec<_> = all.iter().map(|kept| store.get_version(&lease, &kept.id).unwrap()).collect();
    assert_eq!(bodies, (0..10).map(|n| format!("body {n}")).collect::<Vec<_>>());
    assert_eq!(all.iter().filter(|kept| kept.current).count(), 1);
    assert!(all[9].current);
    store.delete_version(&lease, &all[0].id).unwrap();
    store.delete_version(&lease, &all[9].id).unwrap();
    store.delete_version(&lease, &all[9].id).unwrap();
    assert_eq!(kind(store.get_version(&lease, &all[0].id)), Kind::NotFound);
    assert_eq!(store.get(&lease).unwrap(), "body 8");
    assert_eq!(of_lease().len(), 8);
    store.delete(&lease).unwrap();
    assert_eq!(of_lease(), []);
    assert_eq!(names(store, ""), ["leases/a.b"]);
}

pub fn the_probe_finds_everything(store: &Store) {
    let wanted = Capabilities { conditional_create: Support::Works, conditional_replace: Support::Works, delete: true };
    assert_eq!(store.probe().unwrap(), wanted);
    assert!(store.may_delete().unwrap());
    assert!(names(store, "").is_empty(), "the probe cleans up");
}
