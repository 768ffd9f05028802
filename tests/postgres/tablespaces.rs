//! Tablespaces restored to disks of their own.

use crate::physical::{Home, with_tablespace};
use crate::support::postgres::{Cluster, own};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A directory of another file system, where there is one.
fn other_disk() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let disk = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o711)).unwrap();
    disk
}

#[test]
fn tablespaces_come_back_on_disks_of_their_own() {
    for (major, transport) in [(15, "files"), (17, "stream")] {
        let cluster = Cluster::new(major);
        let fast = with_tablespace(&cluster);
        for name in ["slow", "same"] {
            let place = cluster.directory.join(name);
            fs::create_dir(&place).unwrap();
            own(&place);
            cluster.sql(&format!("create tablespace {name} location '{}'", place.display()));
            cluster.sql(&format!("create table in_{name} tablespace {name} as select generate_series(1, 500) n"));
        }
        let home = Home::new(&cluster, &format!("transport = \"{transport}\""));
        home.backup(0);
        let oid = |name: &str| cluster.value(&format!("select oid from pg_tablespace where spcname = '{name}'"));
        let disk = other_disk();
        // One directory is there already, as a mount point is.
        let (new_fast, new_slow) = (disk.path().join("new fast"), disk.path().join("slow"));
        fs::create_dir(&new_slow).unwrap();
        let by_place = format!("{}={}", fast.display(), new_fast.display());
        let by_oid = format!("{}={}", oid("slow"), new_slow.display());
        let mut copy = Cluster::empty(major);
        let moved = ["--tablespace", &by_place, "--tablespace", &by_oid];
        let restore = [&["restore", "pg", "--to", copy.data.to_str().unwrap()], &moved[..]].concat();
        let told = home.run(&[&restore[..], &["--dry-run"]].concat(), 0).out;
        for place in [&new_fast, &new_slow] {
            assert!(told.contains(&format!(" to {}\n", place.display())), "{told}");
        }
        assert!(!new_fast.exists(), "a dry run makes nothing");
        let said = home.run(&restore, 0).out;
        assert!(said.contains(&format!("pg_tblspc/{} lies in {}.", oid("slow"), new_slow.display())), "{said}");
        copy.configure("archive_mode = off");
        copy.start();
        copy.await_recovery();
        let location = |name: &str| {
            copy.value(&format!("select pg_tablespace_location(oid) from pg_tablespace where spcname = '{name}'"))
        };
        assert_eq!(location("fast"), new_fast.to_str().unwrap());
        assert_eq!(location("slow"), new_slow.to_str().unwrap());
        assert_eq!(location("same"), copy.data.join("tablespaces").join(oid("same")).to_str().unwrap());
        let counts = "select concat_ws(' ', (select count(*) from elsewhere), (select count(*) from in_slow), (select count(*) from in_same))";
        assert_eq!(copy.value(counts), "20000 500 500");
        // A server drops a tablespace only if nothing that is not its own lies there.
        copy.sql("drop table elsewhere; drop table in_slow");
        copy.sql("checkpoint");
        copy.sql("drop tablespace fast");
        copy.sql("drop tablespace slow");
        assert_eq!(fs::read_dir(&new_fast).unwrap().count(), 0, "nothing of the restore is left there");
        assert_eq!(cluster.value(counts), "20000 500 500", "what the live server has is untouched");
    }
}

#[test]
fn a_tablespace_is_not_restored_to_where_something_is() {
    let cluster = Cluster::new(15);
    let fast = with_tablespace(&cluster);
    let home = Home::new(&cluster, "");
    home.backup(0);
    let refused = |old: &str, place: &Path, more: &[&str]| {
        let moved = format!("{old}={}", place.display());
        let said = home.run(&[&["restore", "pg", "--to", "never", "--tablespace", &moved], more].concat(), 64).err;
        assert!(!home.0.path().join("never").exists() && !home.0.path().join(".never.blackstart").exists(), "{said}");
        said
    };
    let old = fast.to_str().unwrap();
    let free = home.0.path().join("free");
    // The live server's own.
    let said = refused(old, &fast, &[]);
    assert!(said.contains("is not empty") && said.contains("never overwrites"), "{said}");
    let said = refused("4711", &free, &[]);
    assert!(said.contains("no tablespace 4711") && said.contains(old), "it names those there are: {said}");
    let said = refused(old, &free, &["--tablespace", &format!("{old}/=other")]);
    assert!(said.contains("twice"), "{said}");
    let said = refused(old, &free.join("no/parent"), &[]);
    assert!(said.contains("cannot make"), "{said}");
    assert!(!free.exists());
    assert_eq!(cluster.value("select count(*) from elsewhere"), "20000");
    let left: Vec<String> =
        fs::read_dir(home.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.contains("never")), "{left:?}");
}
