//! Without the program: `recover-log.py` writes the stored log as segment files, and a server replays them.

use crate::support::postgres::Setup;
use crate::world::{World, base, on_copy, options, source};
use blackstart::operations::wal::get::Files;
use blackstart::operations::wal::receive::Options;
use blackstart::source::postgres::wal::WalFile;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

fn recover(world: &World, to: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("recover/recover-log.py");
    let key = world.path("recovery.key");
    fs::write(&key, world.recovery.to_text("test").as_bytes()).unwrap();
    let mut python = Command::new("python3");
    python.arg("-B").arg(script).arg("--repository").arg(world.path("repository"));
    python.arg("--root").arg(world.recovery.signing.public().id()).arg("--identity").arg(key);
    python.arg("db").arg(to).output().unwrap()
}

#[test]
fn recover_py_brings_a_server_to_the_newest_stored_moment() {
    let mut setup = Setup::new(15).config("max_wal_size = 1GB\nwal_keep_size = 1GB");
    setup.segment = 1;
    let (world, cluster) = (World::new(), setup.start());
    cluster.sql("create table t (n int)");
    world.catch_up(&cluster).unwrap();
    let base = base(&cluster, "base");
    // Many small pieces, runs of them, and whole units.
    let receiver = world.receiver(&cluster, Options { seal_every: Duration::ZERO, ..options() });
    for n in 0..60 {
        cluster.sql(&format!("insert into t values ({n})"));
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.sql("insert into t select generate_series(100, 20000)");
    for n in 1..5 {
        receiver.wait_for_all(&cluster);
        cluster.sql(&format!("insert into t values (-{n})"));
    }
    receiver.wait_for_all(&cluster);
    receiver.stop().unwrap();
    let runs = world.log().stretches[0].timelines[&1].iter().filter(|s| s.end.is_some()).count();
    assert!(runs >= 2, "{runs} runs");
    // A run that is damaged is no loss while its pieces are there.
    let run = world.log().stretches[0].timelines[&1].iter().find(|s| s.end.is_some()).unwrap().object.key.clone();
    let file = world.path("repository").join(run.as_str());
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() - 50;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();

    let to = world.path("wal");
    let output = recover(&world, &to);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let identities = std::slice::from_ref(&world.recovery.identity);
    let files = Files::open(&world.host.open, identities, &source()).unwrap().unwrap();
    let mut compared = 0;
    for entry in fs::read_dir(&to).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let Some(WalFile::Segment { timeline, start }) = WalFile::parse(&name, 1 << 20) else { panic!("{name}") };
        let ours = world.path("ours");
        files.segment(&files.windows[0], timeline, start, &mut File::create(&ours).unwrap()).unwrap();
        assert!(fs::read(&ours).unwrap() == fs::read(entry.path()).unwrap(), "{name}");
        compared += 1;
    }
    assert!(compared >= 2, "{compared} segments");

    let mut restored = on_copy(&base, &cluster);
    for entry in fs::read_dir(&to).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), restored.data.join("pg_wal").join(entry.file_name())).unwrap();
    }
    restored.configure("restore_command = 'false'\n");
    fs::write(restored.data.join("recovery.signal"), "").unwrap();
    crate::support::postgres::own_all(&restored.data);
    restored.start();
    restored.await_recovery();
    let count = "select count(*) || ' ' || min(n) from t";
    assert_eq!(restored.value(count), cluster.value(count));

    // A piece that nothing else holds is gone: refused, and nothing is visible.
    let tail = world.log().stretches[0].tail(&world.host.open.store, &world.host.open.trust).unwrap().unwrap();
    let pieces = world.path("repository/wal/db/0000000001/00000001");
    let unit = tail.line.start.0 >> 20 << 20;
    let newest_unit = |name: &str| u64::from_str_radix(&name[..16], 16).unwrap() >= unit;
    let mut names: Vec<String> =
        fs::read_dir(&pieces).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| newest_unit(name));
    names.sort();
    assert!(names.len() > 1, "{names:?}");
    fs::remove_file(pieces.join(&names[0])).unwrap();
    fs::remove_dir_all(&to).unwrap();
    let output = recover(&world, &to);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stderr).contains("lost"), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!to.exists());
}
