//! Children that are slow, talkative, secretive, or leave others behind.

use super::*;

#[test]
fn output_counts_only_with_the_exit_code() {
    let spec = Spec::new(["sh", "-c", "echo data; echo broken >&2; exit 3"]);
    let error = run(&spec, Duration::from_secs(10), 100).unwrap_err().to_string();
    assert!(error.contains("exited with 3") && error.contains("broken"), "{error}");
    assert_eq!(run(&Spec::new(["echo", "data"]), Duration::from_secs(10), 100).unwrap(), b"data\n");
    assert!(run(&Spec::new(["echo", "too long"]), Duration::from_secs(10), 3).is_err());
}

#[test]
fn what_a_child_leaves_behind_ends_with_it_unless_it_was_to_start_it() {
    let leaves = |starts: bool| {
        let spec = Spec { output: Output::Piped, ..Spec::new(["sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!"]) };
        let mut child = Child::spawn(&Spec { starts, ..spec }).unwrap();
        let mut pid = String::new();
        child.output().unwrap().read_to_string(&mut pid).unwrap();
        child.wait(Duration::from_secs(30)).unwrap().success().unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    };
    let running = |pid: Pid| {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    };
    let gone = leaves(false);
    let until = Instant::now() + Duration::from_secs(30);
    while running(gone) {
        assert!(Instant::now() < until, "it still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
    let stays = leaves(true);
    assert!(running(stays));
    rustix::process::kill_process(stays, Signal::KILL).unwrap();
}

#[test]
fn a_slow_child_is_killed_with_its_children() {
    let mut spec = Spec::new(["sh", "-c", "sleep 1000 & echo $!; wait"]);
    spec.output = Output::Piped;
    let mut child = Child::spawn(&spec).unwrap();
    let mut line = String::new();
    BufReader::new(child.output().unwrap()).read_line(&mut line).unwrap();
    assert!(child.wait(Duration::from_millis(100)).unwrap_err().to_string().contains("did not end within"));
    assert!(is_gone(line.trim()), "the grandchild lives on");
}

#[test]
fn what_a_child_leaves_running_ends_with_it() {
    let mut spec = Spec::new(["sh", "-c", "sleep 1000 >&- & echo $!"]);
    spec.output = Output::Piped;
    let mut child = Child::spawn(&spec).unwrap();
    let mut line = String::new();
    BufReader::new(child.output().unwrap()).read_line(&mut line).unwrap();
    let begun = Instant::now();
    child.wait(Duration::from_secs(10)).unwrap().success().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "it waited for the one left behind");
    assert!(is_gone(line.trim()), "the grandchild lives on");
}

#[test]
fn secrets_are_passed_on_and_struck_out() {
    // The line is longer than what is kept: wherever it is cut, no part of the secret stays.
    for shift in 0..24 {
        let line = format!(
            "printf %s \"$P\"; printf '%{shift}s' '' >&2; yes \"login with $P failed\" | head -c 9000 | tr -d '\\n' >&2; exit 1"
        );
        let mut spec = Spec::new(["sh", "-c", &line]);
        spec.secret = vec![("P".into(), Zeroizing::new("hunter2".into()))];
        assert!(!format!("{spec:?}").contains("hunter2"));
        spec.output = Output::Piped;
        let mut child = Child::spawn(&spec).unwrap();
        let mut out = String::new();
        child.output().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(out, "hunter2");
        let ended = child.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(ended.stderr.len(), 1);
        assert!(ended.stderr[0].contains("login with … failed") && ended.stderr[0].len() > 3000, "{}", ended.stderr[0]);
        let error = ended.success().unwrap_err().to_string();
        assert!(!error.contains("hu"), "{error}");
    }
}

#[test]
fn a_secret_file_is_read_as_often_as_wanted_and_lies_nowhere() {
    let say = format!(
        "cat {SECRET_FILE} {SECRET_FILE}; stat -L -c %a:%h:%F {SECRET_FILE}; env; echo refused $(cut -d: -f2 {SECRET_FILE}) >&2; exit 1"
    );
    let mut spec = Spec::new(["sh", "-c", &say]);
    let secret = Zeroizing::new("hunter2".to_owned());
    spec.file = Some(SecretFile { contents: Zeroizing::new("*:hunter2\n".into()), secret });
    assert!(!format!("{spec:?}").contains("hunter2"));
    spec.output = Output::Piped;
    let mut child = Child::spawn(&spec).unwrap();
    let mut out = String::new();
    child.output().unwrap().read_to_string(&mut out).unwrap();
    // A plain file, its owner's alone, without a name in any directory; and nothing of it in the environment.
    let rest = out.strip_prefix("*:hunter2\n*:hunter2\n600:0:regular file\n").unwrap_or_else(|| panic!("{out}"));
    assert!(rest.contains("PATH=") && !rest.contains("hunter2"), "{out}");
    assert_eq!(child.wait(Duration::from_secs(20)).unwrap().stderr, ["refused …"]);
}

fn is_gone(pid: &str) -> bool {
    let stat = PathBuf::from("/proc").join(pid).join("stat");
    (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
    })
}

#[test]
fn the_environment_is_withheld() {
    let out = run(&Spec::new(["env"]), Duration::from_secs(10), 1 << 20).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(
        out.lines().all(|l| PASSED_ON.iter().any(|p| l.starts_with(&format!("{p}="))) || l.starts_with("_=")),
        "{out}"
    );
}
