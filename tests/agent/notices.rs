//! Notices against real servers: HTTP on loopback, and aiosmtpd with TLS for mail.

use blackstart::error::help_of;
use blackstart::notify::{Channel, Deliveries, Message, Notice, Phase, Problem, Pulse, Severity, send};
use blackstart::repository::layout::SourceName;
use jiff::Timestamp;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::listener::Listener;
use super::support::binary::{configure, expect, home, run};
use super::support::servers::{certify, free_ports, fresh_directory, installed, start};

fn notice(phase: Phase) -> Notice {
    Notice {
        version: 1,
        phase,
        at: Timestamp::UNIX_EPOCH,
        since: Timestamp::UNIX_EPOCH,
        host: "db1".into(),
        problem: Problem {
            key: "orders/rpo".into(),
            severity: Severity::Critical,
            source: Some(SourceName::new("orders").unwrap()),
            title: "orders: the RPO of 1h is exceeded".into(),
            detail: "A disaster now would lose everything".into(),
        },
        head: None,
    }
}

fn message(phase: Phase) -> Message {
    Message::Notice(Box::new(notice(phase)))
}

fn channel_of(text: &str) -> Channel {
    let channel: Channel = toml::from_str(&format!("name = \"c\"\n{text}")).unwrap();
    channel.validate().unwrap();
    channel
}

#[test]
fn each_kind_of_channel_says_it_in_its_own_way() {
    let server = Listener::start();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "hunter2\n").unwrap();
    let go = |text: &str, phase| send(&channel_of(text), &message(phase), dir.path()).unwrap();
    go(&format!("slack = {{ url = {:?} }}", server.url("slack")), Phase::Begun);
    let slack = server.wait("slack", |g| g.path == "/slack");
    let text = slack.body["text"].as_str().unwrap();
    assert!(text.starts_with("[CRITICAL] db1: orders: the RPO of 1h is exceeded"), "{text}");
    let webhook = format!("webhook = {{ url = {:?}, token = {{ file = \"token\" }} }}", server.url("hook"));
    go(&webhook, Phase::Recovered);
    let hook = server.wait("webhook", |g| g.path == "/hook");
    assert_eq!(hook.authorization.as_deref(), Some("Bearer hunter2"));
    assert_eq!(
        (&hook.body["phase"], &hook.body["key"], &hook.body["source"]),
        (&"recovered".into(), &"orders/rpo".into(), &"orders".into())
    );
    let pager = format!("pagerduty = {{ routing_key = {{ file = \"token\" }}, url = {:?} }}", server.url("pd"));
    go(&pager, Phase::Begun);
    go(&pager, Phase::Recovered);
    let trigger = server.wait("trigger", |g| g.body["event_action"] == "trigger");
    let resolve = server.wait("resolve", |g| g.body["event_action"] == "resolve");
    assert_eq!(trigger.body["dedup_key"], resolve.body["dedup_key"]);
    assert_eq!(
        (&trigger.body["routing_key"], &trigger.body["payload"]["severity"]),
        (&"hunter2".into(), &"critical".into())
    );
    let ping = channel_of(&format!(
        "ping = {{ backup = {:?}, drill = {:?}, watch = {:?} }}",
        server.url("b"),
        server.url("d/"),
        server.url("w")
    ));
    let run = "11111111-2222-4333-8444-555555555555".to_owned();
    let sent = [
        (Pulse::Backup, "/start", "/b/start"),
        (Pulse::Backup, "", "/b"),
        (Pulse::Drill, "/fail", "/d/fail"),
        (Pulse::Watch, "", "/w"),
    ];
    for (of, suffix, path) in sent {
        send(&ping, &Message::Ping { of, suffix, run: run.clone() }, dir.path()).unwrap();
        server.wait(path, |g| g.path == format!("{path}?rid={run}"));
    }
    let file = dir.path().join("said");
    go(&format!("command = {{ argv = [\"sh\", \"-c\", \"cat > {}\"] }}", file.display()), Phase::Begun);
    assert!(fs::read_to_string(file).unwrap().contains("\"key\":\"orders/rpo\""));
    let error = send(
        &channel_of("command = { argv = [\"sh\", \"-c\", \"echo no >&2; exit 3\"] }"),
        &message(Phase::Begun),
        dir.path(),
    );
    assert!(format!("{:#}", error.unwrap_err()).contains("exited with 3"));
}

#[test]
fn errors_never_tell_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let server = Listener::start();
    server.failures.store(1, Ordering::SeqCst);
    let [closed] = free_ports();
    for url in [
        server.url("T000/B000/secretpath"),
        format!("http://127.0.0.1:{closed}/secretpath"),
        "https://host.invalid/secretpath".into(),
    ] {
        let channel = channel_of(&format!("slack = {{ url = {url:?} }}"));
        let error = format!("{:#}", send(&channel, &message(Phase::Begun), dir.path()).unwrap_err());
        assert!(!error.contains("secretpath"), "{error}");
    }
    // What leaves the host is encrypted: also an address that is only known when it is read.
    fs::write(dir.path().join("url"), "http://example.com/secretpath").unwrap();
    let channel = channel_of("slack = { url = { file = \"url\" } }");
    let error = format!("{:#}", send(&channel, &message(Phase::Begun), dir.path()).unwrap_err());
    assert!(error.contains("in the clear") && !error.contains("secretpath"), "{error}");
}

#[test]
fn a_channel_is_right_or_refused() {
    for (text, says) in [
        ("", "exactly one"),
        ("slack = { url = \"https://x\" }\ncommand = { argv = [\"true\"] }", "exactly one"),
        ("slack = { url = \"http://example.com/x\" }", "in the clear"),
        ("slack = { url = \"http://127.0.0.1.example.com/x\" }", "in the clear"),
        ("webhook = { url = \"ftp://example.com/x\" }", "https://"),
        ("ping = { }", "pings nothing"),
        ("command = { argv = [] }", "no program"),
        (
            "email = { server = \"mail.example.com\", tls = \"none\", from = \"a@b.c\", to = [\"a@b.c\"] }",
            "in the clear",
        ),
        ("email = { server = \"m\", from = \"a@b.c\", to = [] }", "nobody"),
        ("email = { server = \"m\", from = \"a@b.c\", to = [\"a@b.c\"], user = \"u\" }", "both"),
    ] {
        let channel: Channel = toml::from_str(&format!("name = \"c\"\n{text}\n")).unwrap();
        let error = channel.validate().expect_err(text);
        assert!(format!("{error:#}").contains(says) && help_of(&error).is_some(), "{text}: {error:#}");
    }
}

#[test]
fn what_does_not_arrive_is_tried_again_and_then_counted() {
    let server = Listener::start();
    server.failures.store(2, Ordering::SeqCst);
    let channels = [channel_of(&format!("slack = {{ url = {:?} }}", server.url("slack")))];
    let (sender, receiver) = channel();
    let deliveries = Deliveries::start(&channels, "/".into(), move |d| sender.send(d).unwrap()).unwrap();
    assert!(deliveries.put("c", message(Phase::Begun)));
    let delivered = receiver.recv_timeout(super::daemon::PATIENCE).unwrap();
    assert_eq!((delivered.tries, delivered.error), (3, None));
    // The agent ends: what is still being tried is given up at once, and said so.
    server.failures.store(usize::MAX / 2, Ordering::SeqCst);
    assert!(deliveries.put("c", message(Phase::Begun)));
    std::thread::sleep(Duration::from_millis(300));
    drop(deliveries);
    let given_up = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(given_up.error.unwrap().contains("503"));
}

/// aiosmtpd with STARTTLS; its mails go to a maildir.
pub fn mail_server(directory: &Path) -> u16 {
    certify(directory);
    let [port] = free_ports();
    let mut server = Command::new(installed("python3"));
    server.args(["-m", "aiosmtpd", "-n", "-l", &format!("127.0.0.1:{port}")]);
    server
        .args(["--tlscert", "leaf.pem", "--tlskey", "leaf.key", "-c", "aiosmtpd.handlers.Mailbox"])
        .arg(directory.join("mail"));
    // Until the end of the process.
    std::mem::forget(start(server, directory.to_owned(), port));
    let until = Instant::now() + super::daemon::PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            Instant::now() < until,
            "aiosmtpd does not answer: {}",
            fs::read_to_string(directory.join("log")).unwrap()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    port
}

#[test]
fn mail_goes_through_tls_and_only_to_whom_we_trust() {
    let directory = fresh_directory("aiosmtpd");
    let port = mail_server(&directory);
    let email = |more: &str| {
        channel_of(&format!(
            "email = {{ server = \"127.0.0.1\", port = {port}, from = \"blackstart@db1.example\", to = [\"ops@example.com\"]{more} }}"
        ))
    };
    let untrusted = send(&email(""), &message(Phase::Begun), &directory).unwrap_err();
    assert!(format!("{untrusted:#}").to_lowercase().contains("certificate"), "{untrusted:#}");
    send(&email(", ca = \"ca.pem\""), &message(Phase::Begun), &directory).unwrap();
    let mails: Vec<_> = fs::read_dir(directory.join("mail/new")).unwrap().collect();
    assert_eq!(mails.len(), 1);
    let mail = fs::read_to_string(mails[0].as_ref().unwrap().path()).unwrap();
    assert!(mail.contains("Subject: [CRITICAL] db1: orders: the RPO of 1h is exceeded"), "{mail}");
    assert!(mail.contains("A disaster now would lose everything"), "{mail}");
}

#[test]
fn the_test_verb_tries_every_channel() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    expect(at, &["notify"], 6);
    let server = Listener::start();
    let [closed] = free_ports();
    configure(at, &format!("\n[[notify]]\nname = \"good\"\nslack = {{ url = {:?} }}\n", server.url("slack")));
    configure(at, &format!("[[notify]]\nname = \"bad\"\nwebhook = {{ url = \"http://127.0.0.1:{closed}/x\" }}\n"));
    let ran = run(at, &["notify", "--test"]);
    assert_eq!(ran.code, 4, "{}", ran.all());
    assert!(
        ran.out.contains("good: the test went through") && ran.err.contains("bad: the test did NOT"),
        "{}",
        ran.all()
    );
    assert!(server.got()[0].body["text"].as_str().unwrap().contains("[TEST]"));
    expect(at, &["notify", "--test", "good"], 0);
    expect(at, &["notify", "--test", "nobody"], 64);
}
