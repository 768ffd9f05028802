//! S3 in particular: a network that breaks, endpoints that are dead, servers that lie, credentials.

use crate::cases::{create, key, noise};
use crate::support::proxy::{Plan, Proxy};
use crate::support::servers::{self, Server, connect, rclone, seaweedfs};
use blackstart::bridge::Store;
use blackstart::storage::Kind;
use blackstart::storage::probe::{Capabilities, Support};
use blackstart::storage::retry::{Patience, Retry};
use blackstart::storage::s3::{Credentials, Options, S3};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A fresh prefix, with pages so small that listings need several.
pub fn fresh() -> Store {
    connect(Options { page_size: 7, ..seaweedfs().options() })
}

pub fn fresh_with_versions() -> Store {
    connect(Options { bucket: servers::versioned_bucket().into(), page_size: 7, ..seaweedfs().options() })
}

fn retrying(options: Options, patience: Patience) -> Store {
    Store::start(async move { Ok(Arc::new(Retry::new(Arc::new(S3::connect(options).await?), patience)) as _) }).unwrap()
}

fn at_port(server: &Server, port: u16) -> Options {
    Options { endpoint: Some(format!("http://127.0.0.1:{port}")), ..server.options() }
}

#[test]
fn retries_bring_everything_through_a_bad_network() {
    const PLANS: &[Plan] = &[
        Plan::Unavailable,
        Plan::CutRequest(3 << 20),
        Plan::CutAnswer(50),
        Plan::Delay(Duration::from_millis(20)),
        Plan::CutAnswer(3 << 20),
        Plan::CutRequest(100),
        Plan::Delay(Duration::ZERO),
    ];
    let proxy = Proxy::start(seaweedfs().port, PLANS);
    let options = at_port(seaweedfs(), proxy.port);
    let store = retrying(options.clone(), crate::IMPATIENT);
    let bodies: Vec<_> = (0..6).map(|n| noise(4 << 20).slice(n..)).collect();
    for (n, body) in bodies.iter().enumerate() {
        create(&store, &format!("packs/{n}"), body.clone()).unwrap();
    }
    for (n, body) in bodies.iter().enumerate() {
        assert!(store.get(&key(&format!("packs/{n}"))).unwrap() == *body, "packs/{n} came back changed");
    }
    let version = create(&store, "leases/a", "one").unwrap();
    store.replace(&key("leases/a"), &version, "two".into()).unwrap();
    assert!(proxy.connections.load(Ordering::Relaxed) >= PLANS.len(), "every plan had its turn");

    let direct = connect(Options { endpoint: Some(seaweedfs().endpoint()), ..options });
    assert_eq!(direct.list("packs/").unwrap().len(), bodies.len());
    assert_eq!(direct.get(&key("leases/a")).unwrap(), "two");
    store.delete(&key("packs/0")).unwrap();
    assert_eq!(direct.get(&key("packs/0")).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn a_dead_endpoint_is_a_clear_error_soon() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Accepts (the kernel does it) and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for (port, word) in [(closed, "refused"), (silent.local_addr().unwrap().port(), "no complete answer within 0.3 s")]
    {
        let options = Options { request_time: Duration::from_millis(300), ..at_port(seaweedfs(), port) };
        let store = retrying(options, Patience { tries: 4, ..crate::IMPATIENT });
        let started = Instant::now();
        let error = create(&store, "a/b", "body").unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(60), "took {:?}", started.elapsed());
        assert_eq!((error.kind, error.operation), (Kind::Transient, "create"));
        let cause = error.source.unwrap().to_string();
        assert!(cause.contains("gave up after 4 tries") && cause.contains(word), "{cause}");
    }
}

#[test]
fn the_probe_notices_a_server_that_ignores_conditions() {
    let store = connect(rclone().options());
    let found = store.probe().unwrap();
    let wanted =
        Capabilities { conditional_create: Support::Ignored, conditional_replace: Support::Ignored, delete: true };
    assert_eq!(found, wanted);
    assert!(store.list("probe/").unwrap().is_empty());
}

#[test]
fn without_conditions_create_looks_before_it_writes_only_if_told_to() {
    let options = rclone().options();
    let trusting = connect(options.clone());
    create(&trusting, "a/b", "first").unwrap();
    create(&trusting, "a/b", "second").unwrap();
    let careful = connect(Options { conditional_writes: false, ..options });
    assert_eq!(create(&careful, "a/b", "third").unwrap_err().kind, Kind::AlreadyExists);
    crate::cases::create_never_overwrites(&careful);
    crate::cases::replace_compares_versions(&careful);
    careful.delete(&key("leases/orders")).unwrap();
    crate::cases::ranges_are_exact(&careful);
    careful.delete(&key("a/b")).unwrap();
    careful.delete(&key("a/b")).unwrap();
    assert_eq!(careful.get(&key("a/b")).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn a_wrong_key_is_denied_and_never_tried_again() {
    let wrong = Credentials { access_key: servers::ACCESS_KEY.into(), secret_key: "wrong".into() };
    let options = Options { credentials: Some(wrong), ..seaweedfs().options() };
    // A second try would come after half of a pause at the earliest.
    let pause = Duration::from_secs(60);
    let store = retrying(options, Patience { tries: 8, pause, pause_max: pause });
    let started = Instant::now();
    for error in [create(&store, "a/b", "body").unwrap_err(), store.list("").unwrap_err()] {
        assert_eq!(error.kind, Kind::Denied, "{error:?}");
        assert!(!format!("{error:?}").contains(servers::SECRET_KEY));
    }
    assert!(started.elapsed() < pause / 2, "it was tried again");
}

#[test]
fn a_wrong_checksum_is_refused() {
    let store = connect(seaweedfs().options());
    store.create(&key("a/b"), "body".into(), &[7; 32]).unwrap_err();
    assert!(store.list("").unwrap().is_empty());
}

#[test]
fn a_missing_bucket_is_not_a_missing_object() {
    let store = connect(Options { bucket: "no-such-bucket".into(), ..seaweedfs().options() });
    let error = store.get(&key("repository.json")).unwrap_err();
    assert_eq!(error.kind, Kind::NoStore, "{error:?}");
    assert!(error.source.unwrap().to_string().contains("bucket does not exist"));
}

/// The usual AWS environment, in a process of its own since a test cannot change its environment.
fn in_a_process(endpoint: &str, trusted: &Path) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "s3::environment_child", "--ignored", "--nocapture"]);
    child.env("TEST_LOCATION", format!("s3://{}/environment?endpoint={endpoint}", servers::BUCKET));
    child.env("AWS_ACCESS_KEY_ID", servers::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", servers::SECRET_KEY);
    // Set on many build machines, to files that may not exist.
    child.env("AWS_CA_BUNDLE", "/nonexistent/bundle.pem").env("SSL_CERT_FILE", trusted).env_remove("SSL_CERT_DIR");
    child.output().unwrap()
}

#[test]
fn credentials_come_from_the_environment() {
    let output = in_a_process(&seaweedfs().endpoint(), Path::new("/nonexistent/bundle.pem"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
fn https_trusts_what_the_system_trusts_and_nothing_else() {
    let server = seaweedfs();
    let endpoint = format!("https://127.0.0.1:{}", server.tls_port);
    let output = in_a_process(&endpoint, &server.directory.join("ca.pem"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = in_a_process(&endpoint, Path::new("/nonexistent/bundle.pem"));
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("install ca-certificates"));
    let options = Options { endpoint: Some(endpoint), ..server.options() };
    let error = create(&connect(options), "a/b", "body").unwrap_err();
    let cause = error.source.unwrap().to_string();
    assert!(cause.contains("certificate"), "{cause}");
}

#[test]
#[ignore = "run in a process of its own by others"]
fn environment_child() {
    let store = Store::open(&std::env::var("TEST_LOCATION").unwrap()).unwrap();
    assert_eq!(store.place(), "s3://bucket/environment");
    let name = format!("a/{}", std::process::id());
    create(&store, &name, "body").unwrap();
    assert_eq!(store.get(&key(&name)).unwrap(), "body");
}

#[test]
fn delete_takes_every_version_and_respects_locks() {
    use aws_sdk_s3::types::{ObjectLockLegalHold, ObjectLockLegalHoldStatus};
    let bucket = servers::versioned_bucket();
    let store = connect(Options { bucket: bucket.into(), ..seaweedfs().options() });
    let first = create(&store, "leases/a", "one").unwrap();
    store.replace(&key("leases/a"), &first, "two".into()).unwrap();
    create(&store, "leases/a.b", "neighbour").unwrap();
    store.delete(&key("leases/a")).unwrap();
    store.delete(&key("leases/a")).unwrap();
    crate::cases::create_never_overwrites(&store);
    store.delete(&key("snapshots/orders/0000000001")).unwrap();

    let prefix = store.place().split_once("versioned-bucket/").unwrap().1.to_owned();
    let held = format!("{prefix}/leases/a.b");
    servers::administer(seaweedfs(), |client| async move {
        let left = client.list_object_versions().bucket(bucket).prefix(prefix).send().await.unwrap();
        let left: Vec<_> = left.versions().iter().map(|version| version.key().unwrap().to_owned()).collect();
        assert_eq!(left, [held.as_str()]);
        let hold = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
        client.put_object_legal_hold().bucket(bucket).key(held).legal_hold(hold).send().await.unwrap();
    });
    let error = store.delete(&key("leases/a.b")).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error:?}");
    assert_eq!(store.get(&key("leases/a.b")).unwrap(), "neighbour", "a refused deletion hides nothing");
}
