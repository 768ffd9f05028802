//! Bounds and notes with real processes.

use super::super::{Child, Spec};
use super::*;
use crate::error::kind_of;

const PATIENCE: Duration = Duration::from_secs(60);

fn bounds(memory: u64, time: Duration) -> Bounds {
    Bounds { memory, time }
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn memory_of_a_child_and_of_its_children_is_bounded_and_the_breach_is_told() {
    let notes = tempfile::tempdir().unwrap();
    let watch = Watch::begin(notes.path().to_owned(), bounds(60 << 20, PATIENCE)).unwrap();
    // The child of a child, which ignores the request to end.
    let hungry =
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); kept = b'x' * (200 << 20); time.sleep(600)";
    let mut child = Child::spawn(&Spec::new(["sh", "-c", &format!("python3 -c \"{hungry}\"; true")])).unwrap();
    let ended = child.wait(PATIENCE).unwrap();
    assert!(!ended.status.success(), "it must have been ended: {ended:?}");
    let breach = watch.check().expect_err("the breach is known");
    assert_eq!(kind_of(&breach), Kind::Environment);
    assert!(format!("{breach:#}").contains("of memory, and may use 62.9 MB"), "{breach:#}");
}

#[test]
fn time_is_bounded_for_children_and_for_this_thread() {
    let notes = tempfile::tempdir().unwrap();
    let watch = Watch::begin(notes.path().to_owned(), bounds(1 << 40, Duration::from_millis(300))).unwrap();
    let mut child = Child::spawn(&Spec::new(["sleep", "600"])).unwrap();
    let ended = child.wait(PATIENCE);
    assert!(ended.is_err() || ended.is_ok_and(|ended| !ended.status.success()), "it must not sleep on");
    wait("the breach is known", || watch.check().is_err());
    assert_eq!(interrupt::check("").map_err(|e| kind_of(&e)), Err(Kind::Environment), "nothing new is begun");
    drop(watch);
    interrupt::check("").expect("the bound ends with the watch");
}

#[test]
fn what_is_noted_is_ended_by_number_start_and_directory_and_nothing_else_is() {
    let scratch = tempfile::tempdir().unwrap();
    let (notes, others) = (scratch.path().join("notes"), tempfile::tempdir().unwrap());
    std::fs::create_dir(&notes).unwrap();
    let watch = Watch::begin(notes.clone(), bounds(1 << 40, PATIENCE)).unwrap();
    let start = |directory: &Path| {
        Child::spawn(&Spec { directory: Some(directory.to_owned()), ..Spec::new(["sleep", "600"]) }).unwrap()
    };
    let (mut ours, mut elsewhere, mut later) = (start(scratch.path()), start(others.path()), start(scratch.path()));
    let adjusted = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", ours.id())).unwrap();
    assert_eq!(adjusted.trim(), FIRST_TO_GO, "the kernel takes it first");
    // As if the number had been given to another since.
    let note = notes.join(later.id().to_string());
    let text = std::fs::read_to_string(&note).unwrap();
    let (started, boot) = text.trim().split_once(' ').unwrap();
    let earlier = format!("{} {boot}\n", started.parse::<u64>().unwrap() - 1);
    File::create(&note).unwrap().write_all(earlier.as_bytes()).unwrap();
    assert!(end_noted(&notes, scratch.path()));
    assert!(!ours.wait(PATIENCE).unwrap().status.success(), "it was noted, and works there");
    assert!(elsewhere.poll().unwrap().is_none(), "it works elsewhere");
    assert!(later.poll().unwrap().is_none(), "it is another process than the one noted");
    assert!(!notes.join(ours.id().to_string()).exists(), "what has ended is noted no longer");
    drop(watch);
    let unwatched = start(scratch.path());
    assert!(!notes.join(unwatched.id().to_string()).exists(), "without a watch nothing is noted");
}
