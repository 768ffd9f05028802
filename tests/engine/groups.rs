//! Groups: common points of several sources, how they are damaged, and where their runs and restores die.

use super::faults::{Fault, Faulty, hooked};
use super::world::{World, assert_same_tree, name};
use blackstart::bridge::Store;
use blackstart::clock::SystemClock;
use blackstart::error::{Kind, help_of, kind_of};
use blackstart::operations::backup::Options;
use blackstart::operations::group::{self, GroupReport, MemberRun, OpenSource, Pick, Request};
use blackstart::operations::retention::Policy;
use blackstart::operations::{Open, prune, restore as single, verify};
use blackstart::repository::group::{Points, Skew};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout::{self, GroupName};
use blackstart::repository::trust::{Certificate, Role, TrustRecord};
use blackstart::source::Source;
use blackstart::source::barrier::{Barrier, Moment};
use blackstart::source::files::{Files, FilesOptions};
use blackstart::source::sqlite::Sqlite;
use blackstart::storage::Key;
use blackstart::storage::Kind::{Denied, Other, Transient};
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn shop() -> GroupName {
    GroupName::new("shop").unwrap()
}

/// A database and a tree.
struct Lab {
    world: World,
    memory: Memory,
}

impl Lab {
    fn new() -> Lab {
        let memory = Memory::default();
        let world = World::on(Store::new(Arc::new(memory.clone())).unwrap(), tempfile::tempdir().unwrap());
        let db = rusqlite::Connection::open(world.path("app.db")).unwrap();
        db.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t(n); INSERT INTO t VALUES (0)").unwrap();
        fs::create_dir(world.path("data")).unwrap();
        let lab = Lab { world, memory };
        lab.write(1);
        lab
    }

    fn write(&self, n: u32) {
        let db = rusqlite::Connection::open(self.world.path("app.db")).unwrap();
        db.execute("UPDATE t SET n = ?1", [n]).unwrap();
        fs::write(self.world.path("data/n"), n.to_string()).unwrap();
    }

    fn run(world: &World) -> anyhow::Result<GroupReport> {
        let (app, data) = (world.path("app.db"), world.path("data"));
        let clock = Arc::clone(&world.host.open.clock);
        let sqlite: OpenSource = Box::new(move || Ok(Box::new(Sqlite::open(&app, Arc::clone(&clock))?)));
        let tree: OpenSource =
            Box::new(move || Ok(Box::new(Files::open(&data, FilesOptions::default(), &SystemClock)?)));
        Lab::of(world, vec![("db", sqlite), ("tree", tree)])
    }

    fn of(world: &World, members: Vec<(&str, OpenSource)>) -> anyhow::Result<GroupReport> {
        let member =
            |(source, open)| MemberRun { name: name(source), open, options: Options::default(), tiering: None };
        group::backup(&world.host, &shop(), members.into_iter().map(member).collect())
    }

    /// A run that must come out well. The number of its point.
    fn point(&self) -> u64 {
        let report = Lab::run(&self.world).unwrap();
        report.members.iter().for_each(|m| assert!(m.report.is_ok(), "{:?}", m.report));
        report.point.unwrap().group.n
    }

    fn restore(world: &World, pick: Pick, to: &str) -> anyhow::Result<group::GroupRestored> {
        let open = &world.host.open;
        let found = group::find(open, &shop(), pick)?;
        let request = Request { to: world.path(to), workers: 1, progress: Default::default() };
        group::restore(open, std::slice::from_ref(&world.recovery.identity), &found, &request)
    }

    /// What the restored members hold.
    fn holds(&self, to: &str) -> (u32, u32) {
        let root = self.world.path(to);
        let db = rusqlite::Connection::open(root.join("db/app.db")).unwrap();
        let n = db.query_row("SELECT n FROM t", [], |row| row.get(0)).unwrap();
        (n, fs::read_to_string(root.join("tree/n")).unwrap().parse().unwrap())
    }

    fn key(n: u64) -> Key {
        layout::group(&shop(), n)
    }

    /// The first line of point `n`, changed and signed by `keys`.
    fn forge(&self, n: u64, keys: &KeyPair, change: impl FnOnce(&mut Value)) {
        let object = self.world.host.open.store.get(&Lab::key(n)).unwrap();
        let mut line: Value = serde_json::from_slice(object.split(|b| *b == b'\n').next().unwrap()).unwrap();
        change(&mut line);
        let body = keys.signing.sign_line(&line).unwrap();
        self.memory.tamper(&Lab::key(n), |bytes| *bytes = body);
    }

    /// `find` gives an error that says `why`, and a restore leaves nothing.
    fn refuses(&self, pick: Pick, kind: Kind, why: &str) {
        let error = Lab::restore(&self.world, pick, "out").unwrap_err();
        let said = format!("{error:#} | {}", help_of(&error).unwrap_or("no help"));
        assert!(kind_of(&error) == kind && said.contains(why) && said.contains("Nothing was changed"), "{said}");
        self.nothing_is_left();
    }

    fn nothing_is_left(&self) {
        let left = fs::read_dir(self.world.dir.path()).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let left: Vec<String> = left.filter(|name| name.contains("out")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_point_is_written_last_and_all_of_it_comes_back() {
    let mut lab = Lab::new();
    let written: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&written);
    let store = hooked(&lab.memory, move |operation, key| {
        if operation == "create" {
            noted.lock().unwrap().push(key.to_owned());
        }
    });
    lab.world.host.open.store = store;
    assert_eq!(lab.point(), 1);
    let written = written.lock().unwrap().clone();
    assert_eq!(written.last().unwrap(), "groups/shop/0000000001");
    for commit in ["snapshots/db/0000000001", "snapshots/tree/0000000001"] {
        assert!(written.contains(&commit.to_owned()), "{written:?}");
    }
    lab.write(2);
    assert_eq!(lab.point(), 2);
    let done = Lab::restore(&lab.world, Pick::Latest, "out").unwrap();
    assert_eq!((done.group.n, lab.holds("out")), (2, (2, 2)));
    assert_same_tree(&lab.world.path("data"), &lab.world.path("out/tree"));
    assert_eq!(fs::read_dir(lab.world.path("out")).unwrap().count(), 2);
    Lab::restore(&lab.world, Pick::Number(1), "first").unwrap();
    assert_eq!(lab.holds("first"), (1, 1));
    let again = Lab::restore(&lab.world, Pick::Latest, "out").unwrap_err();
    assert!(format!("{again:#}").contains("exists already"), "{again:#}");
}

#[test]
fn a_time_means_the_newest_point_that_is_not_younger() {
    let lab = Lab::new();
    lab.point();
    let open = &lab.world.host.open;
    let first = Points::list(&open.store, &open.trust, &shop()).unwrap().read(1).unwrap().group;
    lab.write(2);
    lab.point();
    let at = |time| group::find(open, &shop(), Pick::At(time)).map(|found| found.point.group.n);
    assert_eq!(at(first.until()).unwrap(), 1);
    assert_eq!(at(open.now()).unwrap(), 2);
    assert!(at(first.until() - SignedDuration::from_nanos(1)).is_err());
}

#[test]
fn the_skew_is_the_widest_distance_of_points_and_lies_are_refused() {
    let lab = Lab::new();
    lab.point();
    let open = &lab.world.host.open;
    let read = || Points::list(&open.store, &open.trust, &shop()).unwrap().read(1);
    let group = read().unwrap().group;
    let mut members = group.members.clone();
    assert!(!members[0].throughout && members[1].throughout);
    members[0].to = members[0].from + SignedDuration::from_micros(1500);
    members[1].from = members[0].from - SignedDuration::from_millis(10);
    members[1].to = members[0].from + SignedDuration::from_millis(30);
    assert_eq!(Skew::of(&members), Skew { skew_ms: Some(2), spread_ms: 40 });
    members[1].throughout = false;
    assert_eq!(Skew::of(&members).skew_ms, Some(40));
    members[0].throughout = true;
    members[1].throughout = true;
    assert_eq!(Skew::of(&members).skew_ms, None);
    lab.forge(1, &lab.world.host.keys, |line| line["skew_ms"] = json!(group.skew.skew_ms.unwrap() + 1));
    assert!(format!("{:#}", read().unwrap_err()).contains("the skew is not that of its members"));
}

/// Whatever is done to the object of the newest point, a restore says so and takes no older one in silence.
#[test]
fn a_point_that_was_tampered_with_is_never_taken() {
    let stranger = KeyPair::generate().unwrap();
    type Damage = fn(&Lab, &KeyPair);
    let cases: [(&str, Damage, &str); 8] = [
        ("a bit", |lab, _| lab.memory.tamper(&Lab::key(2), |b| b[60] ^= 1), "does not verify"),
        ("cut short", |lab, _| lab.memory.tamper(&Lab::key(2), |b| b.truncate(100)), "does not verify"),
        ("another key", |lab, stranger| lab.forge(2, stranger, |_| ()), "another key"),
        (
            "another key that says so",
            |lab, stranger| lab.forge(2, stranger, |line| line["key"] = json!(stranger.signing.public().id())),
            "has not certified",
        ),
        (
            "another place",
            |lab, _| {
                let first = lab.world.host.open.store.get(&Lab::key(1)).unwrap();
                lab.memory.tamper(&Lab::key(2), |b| *b = first.to_vec());
            },
            "belongs elsewhere",
        ),
        (
            "another group",
            |lab, _| lab.forge(2, &lab.world.host.keys, |line| line["group"] = json!("other")),
            "elsewhere",
        ),
        (
            "another type",
            |lab, _| lab.forge(2, &lab.world.host.keys, |line| line["type"] = json!("drill")),
            "not a group",
        ),
        (
            "a newer format",
            |lab, _| lab.forge(2, &lab.world.host.keys, |line| line["format"] = json!(2)),
            "newer version",
        ),
    ];
    for (what, damage, why) in cases {
        let lab = Lab::new();
        lab.point();
        lab.write(2);
        lab.point();
        damage(&lab, &stranger);
        lab.refuses(Pick::Latest, Kind::CheckFailed, why);
        lab.refuses(Pick::Number(2), Kind::CheckFailed, why);
        // An older one, by its number; and the snapshots are what they were.
        Lab::restore(&lab.world, Pick::Number(1), "old").unwrap_or_else(|e| panic!("{what}: {e:#}"));
        assert_eq!(lab.holds("old"), (1, 1));
        lab.world.restore("db", &single::Pick::Seq(2), "alone").unwrap();
        let open = &lab.world.host.open;
        let recent = Points::list(&open.store, &open.trust, &shop()).unwrap().recent(10).unwrap();
        assert_eq!((recent.points.len(), recent.faults.len(), recent.faults[0].0), (1, 1, 2), "{what}");
        // Nothing is built upon it.
        let error = Lab::run(&lab.world).err().unwrap();
        assert_eq!(kind_of(&error), Kind::CheckFailed, "{what}: {error:#}");
        assert!(format!("{error:#}").contains("the snapshots of all members are stored"), "{error:#}");
    }
}

/// A key that may write one member may not vouch for the other.
#[test]
fn a_point_needs_a_key_for_all_of_its_members() {
    let mut lab = Lab::new();
    let half = KeyPair::generate().unwrap();
    let record = TrustRecord {
        keys: vec![Certificate {
            role: Role::Host,
            name: "half".into(),
            key: half.signing.public(),
            index: Some(half.identity.to_public().to_string()),
            sources: vec!["db".into()],
        }],
        ..TrustRecord::default()
    };
    let open = &mut lab.world.host.open;
    open.trust.append(&open.store, &lab.world.recovery.signing, record, open.clock.now()).unwrap();
    lab.point();
    lab.forge(1, &half, |line| line["key"] = json!(half.signing.public().id()));
    lab.refuses(Pick::Latest, Kind::CheckFailed, "has not certified for tree");
}

#[test]
fn a_point_that_was_taken_out_of_the_chain_is_missed() {
    let lab = Lab::new();
    (1..=3).for_each(|n| {
        lab.write(n);
        lab.point();
    });
    let open = &lab.world.host.open;
    let faults = || Points::list(&open.store, &open.trust, &shop()).unwrap().recent(10).unwrap().faults;
    assert!(faults().is_empty());
    // The host's own key signs another second point.
    lab.forge(2, &lab.world.host.keys, |line| line["host"] = json!("elsewhere"));
    assert_eq!(faults()[0].1, "is not the one that the point after it names");
    open.store.delete(&Lab::key(2)).unwrap();
    assert_eq!(faults(), [(2, "is missing: somebody removed it".to_owned())]);
    lab.refuses(Pick::Number(2), Kind::CheckFailed, "does not verify");
}

#[test]
fn a_point_whose_member_is_gone_is_not_restored_in_silence() {
    let lab = Lab::new();
    (1..=3).for_each(|n| {
        lab.write(n);
        lab.point();
    });
    let open = &lab.world.host.open;
    let policy = Policy { last: 2, ..Policy::default() };
    let plan = prune::plan(open, &name("db"), &policy, SignedDuration::ZERO).unwrap();
    let broken = group::broken_by(open, &name("db"), &plan.remove).unwrap();
    assert_eq!(broken, [(shop(), 1)]);
    prune::sweep(&lab.world.host, plan).unwrap();
    lab.refuses(Pick::Number(1), Kind::CheckFailed, "db: snapshot 1: is gone");
    // The newest loses a member in another way: its commit is damaged.
    lab.memory.tamper(&layout::snapshot(&name("tree"), 3), |b| b[70] ^= 1);
    lab.refuses(Pick::Number(3), Kind::CheckFailed, "tree: snapshot 3");
    let found = group::find(open, &shop(), Pick::Latest).unwrap();
    assert_eq!((found.point.group.n, found.passed_over.len(), found.passed_over[0].0), (2, 1, 3));
    assert!(found.passed_over[0].1.contains("not whole"), "{:?}", found.passed_over);
    Lab::restore(&lab.world, Pick::Latest, "second").unwrap();
    assert_eq!(lab.holds("second"), (2, 2));
    // Another commit in its place, by the very host.
    let commit = open.store.get(&layout::snapshot(&name("tree"), 2)).unwrap();
    let mut line: Value = serde_json::from_slice(commit.split(|b| *b == b'\n').next().unwrap()).unwrap();
    line["host"] = json!("elsewhere");
    let body = lab.world.host.keys.signing.sign_line(&line).unwrap();
    lab.memory.tamper(&layout::snapshot(&name("tree"), 2), |b| *b = body);
    lab.refuses(Pick::Number(2), Kind::CheckFailed, "another one than the point names");
}

#[test]
fn a_member_that_fails_leaves_the_others_their_snapshots_and_no_point() {
    let lab = Lab::new();
    let (data, missing) = (lab.world.path("data"), lab.world.path("missing.db"));
    let tree =
        || -> OpenSource<'_> { Box::new(|| Ok(Box::new(Files::open(&data, FilesOptions::default(), &SystemClock)?))) };
    let clock = Arc::clone(&lab.world.host.open.clock);
    let gone: OpenSource = Box::new(|| Ok(Box::new(Sqlite::open(&missing, Arc::clone(&clock))?)));
    let report = Lab::of(&lab.world, vec![("db", gone), ("tree", tree())]).unwrap();
    assert!(report.members[0].report.is_err() && report.members[1].report.is_ok());
    assert_eq!(report.point.unwrap_err(), "db failed");
    // It fails after its point is fixed.
    struct Breaks(Sqlite);
    impl Source for Breaks {
        fn kind(&self) -> &'static str {
            self.0.kind()
        }
        fn root(&self) -> String {
            self.0.root()
        }
        fn join(&mut self, member: blackstart::source::barrier::Member) {
            self.0.join(member);
        }
        fn next(&mut self) -> anyhow::Result<Option<blackstart::entry::Entry>> {
            self.0.next()
        }
        fn read(&mut self, _: &mut [u8]) -> anyhow::Result<blackstart::source::Piece> {
            anyhow::bail!("the disk is broken")
        }
        fn finish(&mut self) -> anyhow::Result<blackstart::source::Finished> {
            self.0.finish()
        }
    }
    let (app, clock) = (lab.world.path("app.db"), Arc::clone(&lab.world.host.open.clock));
    let breaks: OpenSource = Box::new(|| Ok(Box::new(Breaks(Sqlite::open(&app, Arc::clone(&clock))?))));
    let report = Lab::of(&lab.world, vec![("db", breaks), ("tree", tree())]).unwrap();
    assert_eq!(report.point.unwrap_err(), "db failed");
    // One that does not know how to join.
    struct Lonely(Files);
    impl Source for Lonely {
        fn kind(&self) -> &'static str {
            self.0.kind()
        }
        fn root(&self) -> String {
            self.0.root()
        }
        fn next(&mut self) -> anyhow::Result<Option<blackstart::entry::Entry>> {
            self.0.next()
        }
        fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<blackstart::source::Piece> {
            self.0.read(buffer)
        }
        fn finish(&mut self) -> anyhow::Result<blackstart::source::Finished> {
            self.0.finish()
        }
    }
    let lonely: OpenSource =
        Box::new(|| Ok(Box::new(Lonely(Files::open(&data, FilesOptions::default(), &SystemClock)?))));
    let report = Lab::of(&lab.world, vec![("lonely", lonely), ("tree", tree())]).unwrap();
    assert!(report.point.unwrap_err().contains("cannot fix its point together"));
    assert!(lab.world.host.open.store.list("groups/").unwrap().is_empty());
    assert_eq!(lab.world.host.open.store.list("snapshots/tree/").unwrap().len(), 3);
    assert_eq!(lab.point(), 1, "the next run makes a point");
}

/// The store dies at the n-th call of a run, for every n: a point that is there is whole, and the next run makes one.
#[test]
fn a_run_that_dies_anywhere_leaves_no_point_or_a_whole_one() {
    for kind in [Fault::Call as fn(usize) -> Fault, Fault::Unanswered] {
        let mut points_left = 0;
        let rounds = (1..500).find(|n| {
            let mut lab = Lab::new();
            lab.point();
            lab.write(2);
            let faulty = Faulty::new(lab.memory.clone(), kind(*n));
            let sound = std::mem::replace(&mut lab.world.host.open.store, Store::new(faulty.clone()).unwrap());
            let ran = Lab::run(&lab.world);
            lab.world.host.open.store = sound;
            let open = &lab.world.host.open;
            let shop = shop();
            let points = Points::list(&open.store, &open.trust, &shop).unwrap();
            let told = ran.is_ok_and(|report| report.point.is_ok());
            assert!(!told || points.last() == 2, "{n}: told of a point that is not there");
            points_left += usize::from(faulty.struck() && points.last() == 2);
            let newest = Lab::restore(&lab.world, Pick::Latest, "out").unwrap();
            let holds = if newest.group.n == 1 { (1, 1) } else { (2, 2) };
            assert_eq!((newest.group.n, lab.holds("out")), (points.last(), holds), "{n}");
            lab.write(3);
            assert_eq!(lab.point(), points.last() + 1);
            Lab::restore(&lab.world, Pick::Latest, "after").unwrap();
            assert_eq!(lab.holds("after"), (3, 3), "{n}");
            !faulty.struck()
        });
        let rounds = rounds.expect("a run ends");
        assert!(rounds > 8, "{rounds}");
        // Only an answer that is lost, or a lease that is not given back, leaves the point of a run that died.
        assert!(points_left >= usize::from(kind(1) == Fault::Unanswered(1)), "{points_left}");
    }
}

/// The store dies at the n-th call of a restore: nothing is at the target, and the same restore goes on.
#[test]
fn a_restore_that_dies_anywhere_shows_nothing_and_goes_on() {
    let mut resumed = 0;
    let rounds = (1..500).find(|n| {
        let mut lab = Lab::new();
        lab.point();
        let faulty = Faulty::new(lab.memory.clone(), Fault::Call(*n));
        let sound = std::mem::replace(&mut lab.world.host.open.store, Store::new(faulty.clone()).unwrap());
        let ended = Lab::restore(&lab.world, Pick::Latest, "out");
        lab.world.host.open.store = sound;
        if !faulty.struck() {
            assert_eq!((ended.unwrap().there.len(), lab.holds("out")), (0, (1, 1)));
            return true;
        }
        assert!(ended.is_err() && !lab.world.path("out").exists(), "{n}");
        let done = Lab::restore(&lab.world, Pick::Latest, "out").unwrap();
        assert_eq!((done.there.len() + done.members.len(), lab.holds("out")), (2, (1, 1)), "{n}");
        resumed += done.there.len();
        fs::remove_dir_all(lab.world.path("out")).unwrap();
        lab.nothing_is_left();
        false
    });
    assert!(rounds.expect("a restore ends") > 8 && resumed > 1, "{rounds:?} {resumed}");
}

#[test]
fn two_restores_do_not_work_in_one_place() {
    let lab = Lab::new();
    lab.point();
    let point = group::find(&lab.world.host.open, &shop(), Pick::Latest).unwrap().point;
    let staging = lab.world.path(&format!(".out.blackstart-group-shop-1-{}", &point.hash.to_string()[..8]));
    fs::create_dir(&staging).unwrap();
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = Lab::restore(&lab.world, Pick::Latest, "out").unwrap_err();
    assert!(format!("{refused:#}").contains("is in the way"), "{refused:#}");
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o700)).unwrap();
    let other = fs::File::open(&staging).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = Lab::restore(&lab.world, Pick::Latest, "out").unwrap_err();
    assert_eq!(kind_of(&refused), Kind::Busy, "{refused:#}");
    drop(other);
    Lab::restore(&lab.world, Pick::Latest, "out").unwrap();
}

/// Points that an engine gives when it likes come first; the rest follow together, when everybody has come.
#[test]
fn the_barrier_keeps_the_order() {
    let barrier = Barrier::new(4, &SystemClock);
    let order: Mutex<Vec<&str>> = Mutex::default();
    let note = |what: &'static str| -> anyhow::Result<()> {
        order.lock().unwrap().push(what);
        Ok(())
    };
    let opened = AtomicUsize::new(0);
    let members: Vec<_> = (0..4).map(|n| barrier.member(n)).collect();
    let [long, fork, quick, leaves] = <[_; 4]>::try_from(members).ok().unwrap();
    std::thread::scope(|scope| {
        let (opened, note) = (&opened, &note);
        scope.spawn(move || {
            opened.fetch_add(1, Ordering::SeqCst);
            long.ready().unwrap();
            assert_eq!(opened.load(Ordering::SeqCst), 3, "it began before the others were open");
            std::thread::sleep(Duration::from_millis(50));
            note("read").unwrap();
            long.fix(Moment::Chosen, || note("chosen")).unwrap();
        });
        scope.spawn(move || {
            opened.fetch_add(1, Ordering::SeqCst);
            fork.fix(Moment::Awaited, || note("awaited")).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            note("fork read").unwrap();
        });
        scope.spawn(move || {
            opened.fetch_add(1, Ordering::SeqCst);
            quick.fix(Moment::Chosen, || note("chosen")).unwrap();
            quick.take_turn().unwrap();
            note("quick read").unwrap();
        });
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(leaves);
        });
    });
    let order = order.into_inner().unwrap();
    assert_eq!(order[..4], ["read", "awaited", "chosen", "chosen"]);
    assert_eq!(order[4..], ["fork read", "quick read"], "a member that can wait was read beside another");
    let spans = barrier.spans();
    assert_eq!(spans.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, true, false]);
    let span = |n: usize| spans[n].unwrap();
    assert!(span(1).to <= span(0).from && span(1).to <= span(2).from, "{spans:?}");
    assert!(spans.iter().flatten().all(|span| span.from <= span.to));
}

/// What the store does not give is not known: neither whole, nor gone. Nobody verifies it, and no restore passes it over for an older one.
#[test]
fn what_cannot_be_read_of_a_point_is_neither_whole_nor_gone() {
    let lab = Lab::new();
    assert_eq!([lab.point(), lab.point()], [1, 2]);
    let sound = lab.world.host.open.clone();
    let verify = |open: &Open| verify::verify(open, None, &verify::Options::default()).unwrap();
    assert!(verify(&sound).sound());
    for (area, kind) in [("groups/shop/", Transient), ("groups/shop/", Denied), ("snapshots/db/", Other)] {
        let silent = Faulty::new(lab.memory.clone(), Fault::Silent("get", area, kind));
        let open = Open { store: Store::new(silent).unwrap(), ..sound.clone() };
        let sights = group::look(&open).unwrap();
        assert!(sights[0].unread.is_some() && sights[0].faults.is_empty(), "{area} {kind:?}: {sights:?}");
        assert!(!verify(&open).sound(), "{area} {kind:?}: what cannot be read is not called whole");
        let found = group::find(&open, &shop(), Pick::Latest);
        assert!(found.is_err(), "{area} {kind:?}: an older point was taken instead");
    }
}
