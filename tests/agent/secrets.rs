//! Every secret that the product takes lies where the operator put it, and nowhere else: not in arguments or environments, which `ps` and crash
//! reports show, not in a log at its most verbose, not in files, in the repository, in what the verbs say, or in what is sent to others.

use base64::prelude::{BASE64_STANDARD, Engine};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::daemon::{Daemon, ended};
use super::listener::Listener;
use super::notices::mail_server;
use super::support::binary::{command, configure, expect, finish, home};
use super::support::engines;
use super::support::postgres::{Setup, installed, own_all, unprivileged};
use super::support::servers::{SECRET_KEY, administer, free_ports, fresh_directory, seaweedfs};

/// A secret, and the part of it that is looked for: no encoding changes it.
struct Secret {
    name: &'static str,
    part: String,
    /// The program in whose environment alone it may be, because the operator has put it there.
    environment_of: Option<&'static str>,
}

fn secrets(home: &Path) -> Vec<Secret> {
    let named = [
        ("pg", None),
        ("pg-wrong", None),
        ("redis", None),
        ("redis-wrong", None),
        ("mail", None),
        ("slack", None),
        ("hook-url", None),
        ("pagerduty", None),
        ("ping", None),
        // `{ env = … }`: in ours. `environment` of a `command` source: in that of its programs.
        ("hook-token", Some("blackstart")),
        ("command", Some("sh")),
    ];
    let mut all: Vec<Secret> =
        named.into_iter().map(|(name, environment_of)| Secret { name, part: part(name), environment_of }).collect();
    all.push(Secret { name: "S3", part: SECRET_KEY.into(), environment_of: None });
    // SMTP sends it so.
    let plain = BASE64_STANDARD.encode(format!("\0agent\0{}", part("mail")));
    all.push(Secret { name: "mail, encoded", part: plain, environment_of: None });
    for (name, file) in [("host key", "host.key"), ("recovery key", "recovery.key")] {
        let text = fs::read_to_string(home.join("blackstart/keys").join(file)).unwrap();
        let keys = text.lines().filter(|line| !line.starts_with('#') && line.len() > 40);
        all.extend(keys.map(|line| Secret {
            name,
            part: line.rsplit(' ').next().unwrap().to_owned(),
            environment_of: None,
        }));
    }
    all
}

fn part(name: &str) -> String {
    format!("Zq7{}9xW", name.replace('-', ""))
}

/// A home with a source of each kind that takes a secret, and with every channel; the server of PostgreSQL and that of Redis with it.
fn crowded_home(listener: &Listener) -> (tempfile::TempDir, super::support::postgres::Cluster, engines::Server) {
    // A password with everything that its file has to escape.
    let awkward = format!(r"a:b\{}'", part("pg"));
    let hba = "host all backup 127.0.0.1/32 scram-sha-256";
    let cluster = Setup { hba: hba.into(), ..Setup::new(17) }.start();
    cluster.sql(&format!("create role backup superuser login password '{}'", awkward.replace('\'', "''")));
    cluster.sql("create table orders as select generate_series(1, 1000) as id");
    let [port] = free_ports();
    let redis = engines::Server::start(
        "redis-server",
        &format!("--bind 127.0.0.1 --port {port} --requirepass {}", part("redis")),
    );

    let repo = format!("s3://bucket/secrets?endpoint={}", seaweedfs().endpoint());
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", &repo], 0);
    for directory in ["secrets", "tmp", "bin", "schedules"] {
        fs::create_dir(at.join(directory)).unwrap();
    }
    let put = |name: &str, text: &str| fs::write(at.join("secrets").join(name), text).unwrap();
    put("aws", &format!("[default]\naws_access_key_id = testkey\naws_secret_access_key = {SECRET_KEY}\n"));
    put("pg", &awkward);
    for name in ["pg-wrong", "redis", "redis-wrong", "mail", "pagerduty", "command"] {
        put(name, &part(name));
    }
    put("slack", &listener.url(&format!("services/{}", part("slack"))));
    put("hook-url", &listener.url(&format!("hook/{}", part("hook-url"))));
    put("ping", &listener.url(&format!("ping/{}", part("ping"))));
    // Dump programs that live long enough to be looked at.
    for entry in fs::read_dir(installed(17)).unwrap() {
        let program = entry.unwrap().path();
        let link = at.join("bin").join(program.file_name().unwrap());
        if program.file_name().unwrap().to_str().unwrap().starts_with("pg_dump") {
            fs::write(&link, format!("#!/bin/sh\nsleep 0.3\n{} \"$@\"\n", program.display())).unwrap();
            fs::set_permissions(&link, PermissionsExt::from_mode(0o755)).unwrap();
        } else {
            std::os::unix::fs::symlink(&program, &link).unwrap();
        }
    }
    let mail = fresh_directory("aiosmtpd-secrets");
    let mail_port = mail_server(&mail);
    fs::copy(mail.join("ca.pem"), at.join("ca.pem")).unwrap();
    configure(at, &sources(cluster.port, port));
    configure(at, &channels(mail_port, &listener.url("pagerduty")));
    for source in ["app", "shop", "shop-wrong", "keys", "keys-wrong", "events"] {
        let drill = if source.ends_with("wrong") { "" } else { "drill = { every = \"1h\" }\n" };
        fs::write(
            at.join(format!("schedules/{source}.toml")),
            format!("source = \"{source}\"\nevery = \"4s\"\n{drill}"),
        )
        .unwrap();
    }
    (home, cluster, redis)
}

fn sources(postgres: u16, redis: u16) -> String {
    let mut text =
        "\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"5s\"\nruns = 4\ndrill_key = \"blackstart/keys/recovery.key\"\n"
            .to_owned();
    text += "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\n";
    for (name, secret) in [("shop", "pg"), ("shop-wrong", "pg-wrong")] {
        text += &format!(
            "[[source]]\nname = \"{name}\"\nkind = \"postgres\"\nurl = \"postgres://backup@127.0.0.1:{postgres}/postgres\"\n\
             password = {{ file = \"secrets/{secret}\" }}\n[source.postgres]\nmode = \"logical\"\nbin = \"bin\"\n"
        );
    }
    for (name, secret) in [("keys", "redis"), ("keys-wrong", "redis-wrong")] {
        text += &format!(
            "[[source]]\nname = \"{name}\"\nkind = \"redis\"\nurl = \"redis://127.0.0.1:{redis}\"\n\
             password = {{ file = \"secrets/{secret}\" }}\n"
        );
    }
    text + "[[source]]\nname = \"events\"\nkind = \"command\"\n[source.command]\nfile = \"events\"\n\
            dump = [\"sh\", \"-c\", \"sleep 0.3; echo events\"]\nenvironment = { TOKEN = { file = \"secrets/command\" } }\n"
}

fn channels(mail: u16, pagerduty: &str) -> String {
    format!(
        "[[notify]]\nname = \"slack\"\nslack = {{ url = {{ file = \"secrets/slack\" }} }}\n\
         [[notify]]\nname = \"hook\"\nwebhook = {{ url = {{ file = \"secrets/hook-url\" }}, token = {{ env = \"HOOK_TOKEN\" }} }}\n\
         [[notify]]\nname = \"pager\"\npagerduty = {{ routing_key = {{ file = \"secrets/pagerduty\" }}, url = {pagerduty:?} }}\n\
         [[notify]]\nname = \"deadman\"\nping = {{ backup = {{ file = \"secrets/ping\" }}, drill = {{ file = \"secrets/ping\" }} }}\n\
         [[notify]]\nname = \"mail\"\nemail = {{ server = \"127.0.0.1\", port = {mail}, ca = \"ca.pem\", from = \"a@b.example\", to = [\"c@d.example\"], \
         user = \"agent\", password = {{ file = \"secrets/mail\" }} }}\n"
    )
}

#[test]
fn no_secret_shows_where_it_does_not_belong() {
    let listener = Listener::start();
    let (home, _cluster, _redis) = crowded_home(&listener);
    let at = home.path();
    let secrets = Arc::new(secrets(at));
    if unprivileged().is_some() {
        own_all(at);
    }
    let daemon = Daemon::of(at, as_the_service(at));
    // What it inherits of its limit holds until the first line of `main`.
    let begun = Instant::now();
    while !forbids_cores(&fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the agent may leave a core dump");
        std::thread::sleep(Duration::from_millis(10));
    }
    let watch = Watch::start(daemon.child.id(), Arc::clone(&secrets));

    for source in ["app", "shop", "keys", "events"] {
        until(&daemon, &format!("two backups of {source}"), 2, |l| l["source"] == source && ended("incremental")(l));
        until(&daemon, &format!("a drill of {source}"), 1, |l| l["source"] == source && ended("drill")(l));
    }
    for source in ["shop-wrong", "keys-wrong"] {
        until(&daemon, "a login that fails", 1, |l| l["source"] == source && l["result"] == "failed");
    }
    for path in ["/services/", "/hook/", "/pagerduty", "/ping/"] {
        listener.wait(path, |got| got.path.starts_with(path));
    }
    watch.until_seen(&["pg_dump", "pg_dumpall", "sleep", "postgres"]);

    let is_private = dumpable_by_nobody(daemon.child.id());
    let page = daemon.get("/metrics").1;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.stop(), 0);
    let found = watch.end();
    assert!(is_private, "the memory of the agent can be dumped, and read by processes of its user");
    assert_eq!(found.with_cores, BTreeSet::new(), "processes that may leave a core dump");
    let wrong: Vec<_> = found.shown.iter().filter(|shown| !may_be(&secrets, shown)).collect();
    assert!(wrong.is_empty(), "secrets in argv, environ or files: {wrong:#?}");
    // That the watch sees something at all, these two show.
    for name in ["hook-token", "command"] {
        assert!(
            found.shown.iter().any(|shown| shown.secret == name && shown.place == "environ"),
            "{name}: {:#?}",
            found.shown
        );
    }

    let mut said = vec![("the metrics".to_owned(), page.into_bytes())];
    said.extend(of_the_verbs(at));
    for got in listener.got() {
        said.push((format!("the body for {}", got.path), without_the_key_of_pagerduty(got.body).into_bytes()));
    }
    said.extend(objects());
    assert!(said.iter().any(|(name, _)| name.contains("snapshots/shop/")), "no object of the repository was looked at");
    for (name, bytes) in &said {
        for secret in secrets.iter() {
            assert!(!holds(bytes, &secret.part), "{} in {name}", secret.name);
        }
    }
    let found = files_with(&secrets, at);
    let (kept, wrong): (Vec<_>, Vec<_>) =
        found.iter().partition(|path| path.contains("/secrets/") || path.contains("/blackstart/keys/"));
    assert!(wrong.is_empty(), "files with secrets: {wrong:?}");
    assert!(kept.iter().any(|path| path.ends_with("secrets/pg")), "the look at files sees nothing: {kept:?}");
}

/// What verbs say.
fn of_the_verbs(at: &Path) -> Vec<(String, Vec<u8>)> {
    // The mail server lets nobody log in.
    let told = finish(&command(at, &["notify", "--test"]).env("HOOK_TOKEN", part("hook-token")).output().unwrap());
    assert!(
        told.err.contains("mail: the test did NOT") && told.out.contains("slack: the test went through"),
        "{}",
        told.all()
    );
    let mut said = vec![("the test of the channels".to_owned(), told.all().into_bytes())];
    for arguments in [
        &["status", "--json"][..],
        &["audit"],
        &["report", "--json"],
        &["snapshots", "--json"],
        &["check"],
        &["verify", "--json"],
    ] {
        let ran = finish(&command(at, arguments).env("HOOK_TOKEN", part("hook-token")).output().unwrap());
        said.push((arguments.join(" "), ran.all().into_bytes()));
    }
    said
}

/// Waits until `n` runs have ended so. The log at its most verbose is long: only lines of runs are read.
fn until(daemon: &Daemon, what: &str, n: usize, wanted: impl Fn(&Value) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(90);
    loop {
        let found =
            Command::new("grep").args(["-F", "\"message\":\"run ended"]).arg(&daemon.log).output().unwrap().stdout;
        let text = String::from_utf8(found).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let count = whole.lines().filter(|line| wanted(&serde_json::from_str(line).unwrap())).count();
        if count >= n {
            return;
        }
        assert!(Instant::now() < give_up, "{what} did not come: {text}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Files below `root` that hold one of the secrets, the agent's log among them.
fn files_with(secrets: &[Secret], root: &Path) -> Vec<String> {
    let mut grep = Command::new("grep");
    grep.args(["-rlF", "--binary-files=text"]);
    for secret in secrets {
        grep.arg("-e").arg(&secret.part);
    }
    let found = grep.arg(root).output().unwrap();
    assert!(found.status.code().unwrap() < 2, "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The agent with the environment of a service that is hardened as the documentation says, as a user of its own where this is root, at its most verbose.
fn as_the_service(at: &Path) -> Command {
    let mut command = command(at, &["agent"]);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        command.env_remove(name);
    }
    command.env("AWS_SHARED_CREDENTIALS_FILE", at.join("secrets/aws")).env("BLACKSTART_LOG", "trace");
    command.env("TMPDIR", at.join("tmp")).env("HOME", at).env("HOOK_TOKEN", part("hook-token"));
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command
}

fn without_the_key_of_pagerduty(mut body: Value) -> String {
    if let Some(object) = body.as_object_mut() {
        object.remove("routing_key");
    }
    body.to_string()
}

fn holds(bytes: &[u8], part: &str) -> bool {
    // The first letter first: most of what is searched is long.
    let part = part.as_bytes();
    bytes.windows(part.len()).any(|window| window[0] == part[0] && window == part)
}

/// Files below `root`.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        // What a running agent removes meanwhile is gone.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && entry.metadata().is_ok_and(|file| file.len() < 64 << 10)
                && let Ok(bytes) = fs::read(entry.path())
            {
                found.push((entry.path().display().to_string(), bytes));
            }
        }
    }
    found
}

/// Every object of the repository.
fn objects() -> Vec<(String, Vec<u8>)> {
    let (send, got) = std::sync::mpsc::channel();
    administer(seaweedfs(), |client| async move {
        let mut pages = client.list_objects_v2().bucket("bucket").prefix("secrets/").into_paginator().send();
        while let Some(page) = pages.next().await {
            for object in page.unwrap().contents() {
                let key = object.key().unwrap();
                let body =
                    client.get_object().bucket("bucket").key(key).send().await.unwrap().body.collect().await.unwrap();
                send.send((key.to_owned(), body.to_vec())).unwrap();
            }
        }
    });
    got.into_iter().collect()
}

/// The kernel gives the files of a process that may not be dumped to root: "PR_SET_DUMPABLE" in prctl(2).
fn dumpable_by_nobody(pid: u32) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    let runs_as = unprivileged().map_or(rustix::process::getuid().as_raw(), |(uid, _)| uid);
    assert_ne!(runs_as, 0, "nothing can be told of a process of root's");
    owner == 0
}

/// A secret, seen where it is not kept.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    secret: &'static str,
    /// `argv`, `environ`, or a file.
    place: String,
    program: String,
}

fn may_be(secrets: &[Secret], shown: &Shown) -> bool {
    let secret = secrets.iter().find(|secret| secret.name == shown.secret).unwrap();
    let programs = match secret.environment_of {
        // A shell, and what it runs.
        Some("sh") => &["sh", "dash", "bash", "busybox", "sleep"][..],
        Some(program) => &[program][..],
        None => &[],
    };
    shown.place == "environ" && programs.contains(&shown.program.as_str())
}

/// Whether a process with these limits leaves no core file, and cannot allow itself one.
fn forbids_cores(limits: &str) -> bool {
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    core.split_whitespace().skip(4).take(2).eq(["0", "0"])
}

#[derive(Default)]
struct Found {
    shown: BTreeSet<Shown>,
    programs: BTreeSet<String>,
    with_cores: BTreeSet<String>,
}

/// Looks at an agent and all that it starts, as `ps` does, as long as it runs, and at the files that it has for a moment.
struct Watch {
    over: Arc<AtomicBool>,
    found: Arc<std::sync::Mutex<Found>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(agent: u32, secrets: Arc<Vec<Secret>>) -> Watch {
        let (over, found) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Found::default())));
        let cwd = fs::read_link(format!("/proc/{agent}/cwd")).unwrap();
        let thread = std::thread::spawn({
            let (over, found) = (Arc::clone(&over), Arc::clone(&found));
            move || {
                while !over.load(Ordering::Relaxed) {
                    for pid in blackstart::child::process::family(&BTreeSet::from([agent])) {
                        look(pid, &secrets, &mut found.lock().unwrap());
                    }
                    // A file for a password is small.
                    for (name, bytes) in files(&cwd.join("tmp")) {
                        for secret in secrets.iter().filter(|secret| holds(&bytes, &secret.part)) {
                            found.lock().unwrap().shown.insert(Shown {
                                secret: secret.name,
                                place: name.clone(),
                                program: String::new(),
                            });
                        }
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Watch { over, found, thread: Some(thread) }
    }

    fn until_seen(&self, programs: &[&str]) {
        let until = Instant::now() + Duration::from_secs(60);
        while let Some(missing) =
            programs.iter().find(|program| !self.found.lock().unwrap().programs.contains(**program))
        {
            assert!(Instant::now() < until, "{missing} was never seen: {:?}", self.found.lock().unwrap().programs);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(mut self) -> Found {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.found.lock().unwrap())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn look(pid: u32, secrets: &[Secret], found: &mut Found) {
    let of = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let exe = || Some(fs::read_link(of("exe")).ok()?.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned());
    // A process that ends or becomes another meanwhile is left out: the next look sees it.
    let Some(before) = exe() else { return };
    let (Ok(argv), Ok(environ), Ok(limits)) =
        (fs::read(of("cmdline")), fs::read(of("environ")), fs::read_to_string(of("limits")))
    else {
        return;
    };
    if exe().as_ref() != Some(&before) || argv.is_empty() {
        return;
    }
    if !forbids_cores(&limits) {
        found.with_cores.insert(format!("{before}: {limits}"));
    }
    for (place, bytes) in [("argv", argv), ("environ", environ)] {
        for secret in secrets.iter().filter(|secret| holds(&bytes, &secret.part)) {
            found.shown.insert(Shown { secret: secret.name, place: place.into(), program: before.clone() });
        }
    }
    found.programs.insert(before);
}
