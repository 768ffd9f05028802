//! `kill -9` at random moments. Whatever the moment: nothing is lost, the next run just works, and what restores is a state that the source had.

use crate::support::binary::{Random, command, configure, expect, files_below, noise};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// In memory where there is such a place: what is tested is the death of a process, not of the machine.
fn home() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Runs `blackstart` and kills it after `time`. False if it ended before that.
fn kill_after(home: &Path, arguments: &[&str], time: Duration) -> bool {
    let mut child = command(home, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(time);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

fn timed(home: &Path, arguments: &[&str]) -> Duration {
    let started = Instant::now();
    expect(home, arguments, 0);
    started.elapsed()
}

/// The tree of generation `n`: contents follow from the number alone.
fn make_generation(root: &Path, n: u64) {
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::write(root.join("generation"), n.to_string()).unwrap();
    fs::write(root.join("big"), noise(n / 4, 3 << 20)).unwrap();
    for i in 0..20 {
        fs::write(root.join(format!("sub/{i}")), noise(n * 100 + i, 5000)).unwrap();
    }
}

fn check_generation(root: &Path) -> u64 {
    let n: u64 = fs::read_to_string(root.join("generation")).unwrap().parse().unwrap();
    assert!(fs::read(root.join("big")).unwrap() == noise(n / 4, 3 << 20));
    for i in 0..20 {
        assert!(fs::read(root.join(format!("sub/{i}"))).unwrap() == noise(n * 100 + i, 5000));
    }
    assert_eq!(fs::read_dir(root.join("sub")).unwrap().count(), 20);
    n
}

/// Every transaction adds the same to both tables, so any state that the database ever had is balanced.
fn write_database(path: &Path, stop: &AtomicBool) {
    let mut database = rusqlite::Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(20)).unwrap();
    database.execute_batch("pragma journal_mode=wal; pragma synchronous=off").unwrap();
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let transaction = database.transaction().unwrap();
        for table in ["a", "b"] {
            transaction.execute(&format!("insert into {table} values (?1, randomblob(2000))"), [n]).unwrap();
            transaction.execute(&format!("delete from {table} where n < ?1"), [n.saturating_sub(300)]).unwrap();
        }
        transaction.commit().unwrap();
        std::thread::sleep(Duration::from_millis(4));
    }
}

fn check_database(path: &Path) {
    let database = rusqlite::Connection::open(path).unwrap();
    let text = |sql: &str| database.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("pragma integrity_check"), "ok");
    let sum = |table: &str| text(&format!("select count(*) || ' ' || coalesce(sum(n), 0) from {table}"));
    assert_eq!(sum("a"), sum("b"));
}

#[test]
fn backup_and_prune_survive_being_killed() {
    const KILLS: u32 = 54;
    let home = home();
    let at = home.path();
    make_generation(&at.join("tree"), 0);
    fs::create_dir(at.join("data")).unwrap();
    let database = rusqlite::Connection::open(at.join("data/app.db")).unwrap();
    database.execute_batch("create table a (n integer, x blob); create table b (n integer, x blob)").unwrap();
    drop(database);
    expect(at, &["init", "--repo", "repo"], 0);
    let retention = "[source.retention]\nlast = 3\n";
    configure(at, "grace = \"1s\"\n");
    configure(at, &format!("[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n{retention}"));
    configure(at, &format!("[[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"data/app.db\"\n{retention}"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopper = Stopper(&stop);
        scope.spawn(|| write_database(&at.join("data/app.db"), &stop));
        kill_many(at, KILLS);
        drop(stopper);
    });
    expect(at, &["prune"], 0);
    let all = expect(at, &["verify", "--read-data", "--json"], 0).json();
    assert_eq!(all["report"]["sources"].as_array().unwrap().len(), 2);
    expect(at, &["drill"], 0);
    // What interrupted sweeps left is gone as well: three snapshots at most and the prune records.
    for source in ["tree", "db"] {
        let records = files_below(&at.join("repo/snapshots").join(source), |_| true).into_iter();
        let snapshots = records.filter(|path| fs::read_to_string(path).unwrap().contains("\"type\":\"snapshot\""));
        assert_eq!(snapshots.count(), 3);
    }
    // A second of grace, and the last kill is longer ago.
    std::thread::sleep(Duration::from_millis(1100));
    expect(at, &["prune"], 0);
    let left = files_below(&at.join("repo"), |name| name.starts_with(".tmp-"));
    assert!(left.is_empty(), "{left:?}");
}

/// Ends the writer when the test ends, however that is.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn kill_many(at: &Path, kills: u32) {
    let mut random = Random(0x5eed);
    let mut backup_time = timed(at, &["backup"]);
    let mut prune_time = timed(at, &["prune"]);
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        round += 1;
        make_generation(&at.join("tree"), round);
        let (verb, time) = if round % 3 == 0 { ("prune", prune_time) } else { ("backup", backup_time) };
        // A little beyond the measured time, too: the last moments are the commit and the end of the lease.
        let moment = time.mul_f64(random.below(1050) as f64 / 1000.0);
        killed += u32::from(kill_after(at, &[verb], moment));
        if verb == "prune" {
            prune_time = (prune_time + timed(at, &["prune"])) / 2;
        }
        backup_time = (backup_time * 3 + timed(at, &["backup"])) / 4;
        let hashes: &[&str] = if round % 6 == 0 { &["verify", "--hashes"] } else { &["verify"] };
        expect(at, hashes, 0);
        if round % 6 == 0 {
            let to = at.join("back");
            fs::create_dir(&to).unwrap();
            expect(at, &["restore", "tree", "--to", "back/tree"], 0);
            assert_eq!(check_generation(&to.join("tree")), round);
            expect(at, &["restore", "db", "--to", "back/db"], 0);
            check_database(&to.join("db/app.db"));
            fs::remove_dir_all(&to).unwrap();
        }
    }
    println!("{killed} kills in {round} rounds; a backup takes {backup_time:?}, a prune {prune_time:?}");
    // What each kept snapshot holds is a generation, whole.
    let listed = expect(at, &["snapshots", "tree", "--json"], 0).json();
    for (i, row) in listed["report"]["snapshots"].as_array().unwrap().iter().enumerate() {
        let to = format!("each{i}");
        expect(at, &["restore", "tree", "--snapshot", &row["seq"].to_string(), "--to", &to], 0);
        assert!(check_generation(&at.join(&to)) <= round);
    }
}

#[test]
fn restore_survives_being_killed() {
    let home = home();
    let at = home.path();
    fs::create_dir_all(at.join("tree/sub")).unwrap();
    for i in 0..6 {
        fs::write(at.join(format!("tree/{i}")), noise(i, 9 << 20)).unwrap();
    }
    for i in 0..400 {
        fs::write(at.join(format!("tree/sub/{i}")), noise(100 + i, 500)).unwrap();
    }
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n");
    expect(at, &["backup"], 0);
    let restore = ["restore", "tree", "--to", "back"];
    let whole = timed(at, &restore);
    let mut random = Random(7);
    let (mut killed, mut resumed) = (0, 0);
    // The stale target of the round before is gone, and with it whatever the restore remembered of it.
    while killed < 16 {
        fs::remove_dir_all(at.join("back")).unwrap();
        let moment = whole.mul_f64(random.below(1050) as f64 / 1000.0);
        if kill_after(at, &restore, moment) {
            killed += 1;
            if !at.join("back").exists() {
                let again = expect(at, &[&restore[..], &["--json"]].concat(), 0).json();
                resumed += u32::from(again["report"]["resumed"] == true);
            }
        }
        same_tree(&at.join("tree"), &at.join("back"));
    }
    println!("{killed} kills, {resumed} resumed; a restore takes {whole:?}");
    assert!(resumed > 3);
    let left: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    println!("left: {left:?}");
    assert!(!left.iter().any(|name| name.contains(".blackstart-") && !name.ends_with(".done")), "{left:?}");
}

fn same_tree(a: &Path, b: &Path) {
    let output = std::process::Command::new("diff").arg("-rq").arg(a).arg(b).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What a killed restore leaves is its staging directory and its journal. Whatever becomes of one without the other, no file has holes.
#[test]
fn a_journal_without_its_tree_counts_for_nothing() {
    let home = home();
    let at = home.path();
    fs::create_dir(at.join("tree")).unwrap();
    for i in 0..6 {
        fs::write(at.join(format!("tree/{i}")), noise(i, 9 << 20)).unwrap();
    }
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"tree\"\nkind = \"files\"\npath = \"tree\"\n");
    expect(at, &["backup"], 0);
    let restore = ["restore", "tree", "--to", "back"];
    let whole = timed(at, &restore);
    for lost_tree in [true, false] {
        let staging = interrupted(at, &restore, whole);
        if lost_tree {
            fs::remove_dir_all(&staging).unwrap();
        } else {
            // As if it had been killed between the mode of the root and the rename.
            fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).unwrap();
        }
        expect(at, &restore, 0);
        same_tree(&at.join("tree"), &at.join("back"));
    }
}

/// Kills a restore when some of its packs are written; gives its staging directory.
fn interrupted(at: &Path, restore: &[&str], whole: Duration) -> PathBuf {
    for share in 1.. {
        let _gone = fs::remove_dir_all(at.join("back"));
        kill_after(at, restore, whole.mul_f64(f64::from(share % 18 + 2) / 20.0));
        let names = fs::read_dir(at).unwrap().map(|e| e.unwrap().path());
        let (journal, trees): (Vec<PathBuf>, Vec<PathBuf>) = names
            .filter(|p| p.to_str().unwrap().contains(".blackstart-"))
            .partition(|p| p.extension().is_some_and(|e| e == "done"));
        let packs = journal.first().map_or(0, |j| fs::read_to_string(j).unwrap().lines().count());
        match trees.first() {
            Some(tree) if packs > 1 => return tree.clone(),
            Some(tree) => fs::remove_dir_all(tree).unwrap(),
            None => {}
        }
        assert!(share < 100, "no restore could be interrupted in its middle");
    }
    unreachable!()
}
