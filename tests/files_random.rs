//! Any tree at all comes back as it was.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod trees;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use trees::*;

#[derive(Debug, Clone)]
enum Made {
    File { size: usize, hole: bool },
    Dir,
    Symlink(Vec<u8>),
    Link(usize),
    Fifo,
}

fn any_made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => (0usize..40_000, any::<bool>()).prop_map(|(size, hole)| Made::File { size, hole }),
        4 => Just(Made::Dir),
        1 => proptest::collection::vec(1u8.., 1..40).prop_map(Made::Symlink),
        1 => any::<usize>().prop_map(Made::Link),
        1 => Just(Made::Fifo),
    ]
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => b'a'..b'c', 1 => Just(b'.'), 1 => Just(b'-'), 1 => any::<u8>()];
    proptest::collection::vec(byte.prop_filter("no name has them", |b| !matches!(b, 0 | b'/')), 1..6)
}

type Plan = Vec<(usize, Vec<u8>, Made, u32, i64, i64)>;

fn build(root: &Path, plan: &Plan) {
    let (mut dirs, mut files, mut last_touches) = (vec![root.to_owned()], Vec::<PathBuf>::new(), Vec::new());
    for (parent, name, made, mode, seconds, nanoseconds) in plan {
        let path = dirs[parent % dirs.len()].join(named(name));
        if name == b"." || name == b".." || path.symlink_metadata().is_ok() {
            continue;
        }
        match made {
            Made::File { size, hole } => {
                let bytes: Vec<u8> = (0..*size).map(|i| (i * 7 + i / 251) as u8).collect();
                let file = File::create(&path).unwrap();
                file.write_all_at(&bytes, if *hole { 1 << 20 } else { 0 }).unwrap();
                files.push(path.clone());
            }
            Made::Dir => {
                fs::create_dir(&path).unwrap();
                dirs.push(path.clone());
            }
            Made::Symlink(target) => symlink(named(target), &path).unwrap(),
            Made::Link(to) if !files.is_empty() => fs::hard_link(&files[to % files.len()], &path).unwrap(),
            Made::Link(_) | Made::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        }
        last_touches.push((path, mode, seconds, nanoseconds));
    }
    for (path, mode, seconds, nanoseconds) in last_touches.into_iter().rev() {
        if !path.is_symlink() {
            // Readable, so that the test passes for anyone.
            chmod(&path, mode | if path.is_dir() { 0o700 } else { 0o400 });
        }
        set_mtime(&path, *seconds, *nanoseconds);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_comes_back(plan in proptest::collection::vec(
        (any::<usize>(), any_name(), any_made(), 0u32..0o10000, 0i64..4_000_000_000, 0i64..1_000_000_000), 0..40))
    {
        let (_dir, root) = scratch();
        build(&root, &plan);
        round_trip(&root);
    }
}
