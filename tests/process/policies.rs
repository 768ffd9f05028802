//! The policies of the kit, evaluated by a simulator of IAM, because no server that the tests can install knows `s3:if-none-match`: whatever the real
//! binary asks of a bucket must be allowed to the role that asks it, under the bucket policy that makes create-only a law; what must never happen
//! is refused.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use crate::support::binary::{configure, expect, home, root_of};
use crate::support::servers::{Server, administer, installed, seaweedfs};

const BUCKET: &str = "with-policies";
const PREFIX: &str = "some/where";
const OTHER_PREFIX: &str = "elsewhere";

/// What IAM is asked for one request.
#[derive(Debug, Clone, PartialEq)]
struct Case {
    action: &'static str,
    /// Key below the prefix; `None`: the bucket.
    key: Option<String>,
    context: Value,
}

impl Case {
    fn of(action: &'static str, key: &str, context: Value) -> Case {
        Case { action, key: Some(key.to_owned()), context }
    }

    fn asked_by(&self, role: &str, prefix: &str) -> Value {
        let resource = match &self.key {
            Some(key) => format!("arn:aws:s3:::{BUCKET}/{prefix}/{key}"),
            None => format!("arn:aws:s3:::{BUCKET}"),
        };
        json!({"role": role, "action": self.action, "resource": resource, "context": self.context})
    }
}

/// What IAM asks for a request, after "Required permissions for Amazon S3 API operations" in the S3 User Guide.
fn cases_of(head: &str) -> Vec<Case> {
    let mut lines = head.lines();
    let mut words = lines.next().unwrap().split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: Vec<(&str, &str)> = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    let asks = |name: &str| query.iter().find(|(n, _)| *n == name).map(|(_, value)| value.replace("%2F", "/"));
    let path = path.replace("%2F", "/");
    let key = path.strip_prefix(&format!("/{BUCKET}/{PREFIX}/"));
    assert!(
        key.is_some() || path.trim_end_matches('/') == format!("/{BUCKET}"),
        "a request outside of the prefix: {method} {target}"
    );
    let one = |action, context| vec![Case { action, key: key.map(str::to_owned), context }];
    let none = || json!({});
    match (method, key) {
        ("HEAD" | "GET", None) => {
            let prefix = || asks("prefix").map_or_else(none, |prefix| json!({"s3:prefix": prefix}));
            for (name, action) in [
                ("versioning", "s3:GetBucketVersioning"),
                ("object-lock", "s3:GetBucketObjectLockConfiguration"),
                ("lifecycle", "s3:GetLifecycleConfiguration"),
            ] {
                if asks(name).is_some() {
                    return one(action, none());
                }
            }
            one(if asks("versions").is_some() { "s3:ListBucketVersions" } else { "s3:ListBucket" }, prefix())
        }
        ("HEAD" | "GET", Some(_)) if asks("retention").is_some() => one("s3:GetObjectRetention", none()),
        ("HEAD" | "GET", Some(_)) if asks("versionId").is_some() => one("s3:GetObjectVersion", none()),
        ("HEAD" | "GET", Some(_)) => one("s3:GetObject", none()),
        ("PUT", Some(_)) if asks("retention").is_some() => one("s3:PutObjectRetention", none()),
        ("PUT", Some(_)) if asks("tagging").is_some() => one("s3:PutObjectTagging", none()),
        ("POST", Some(_)) if asks("restore").is_some() => one("s3:RestoreObject", none()),
        ("DELETE", Some(_)) if asks("versionId").is_some() => one("s3:DeleteObjectVersion", none()),
        ("DELETE", Some(_)) => one("s3:DeleteObject", none()),
        ("PUT", Some(_)) if asks("uploadId").is_none() => {
            let mut context = json!({"s3:ObjectCreationOperation": "true"});
            for condition in ["if-none-match", "if-match"] {
                if let Some(value) = header(condition) {
                    context[format!("s3:{condition}")] = value.into();
                }
            }
            let mut all = one("s3:PutObject", context);
            for (name, action) in
                [("x-amz-object-lock-mode", "s3:PutObjectRetention"), ("x-amz-tagging", "s3:PutObjectTagging")]
            {
                if header(name).is_some() {
                    all.extend(one(action, none()));
                }
            }
            all
        }
        // Several keys at once stand in the body; and blackstart makes no uploads in parts.
        _ => panic!("this test does not know what IAM asks for {method} {target}"),
    }
}

/// A proxy that keeps the head of each request.
struct Recorder {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    /// Serves until the process ends.
    fn start(upstream: u16) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let recorder = Recorder { port: listener.local_addr().unwrap().port(), heads: Arc::default() };
        let heads = Arc::clone(&recorder.heads);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let heads = Arc::clone(&heads);
                std::thread::spawn(move || {
                    let server = TcpStream::connect(("127.0.0.1", upstream)).unwrap();
                    let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                    std::thread::spawn(move || {
                        // Either may close first.
                        drop(std::io::copy(&mut answers, &mut to_client));
                        drop(to_client.shutdown(std::net::Shutdown::Both));
                    });
                    drop(pass_on(&mut BufReader::new(client), &server, &heads));
                    drop(server.shutdown(std::net::Shutdown::Write));
                });
            }
        });
        recorder
    }

    /// What was asked since the last time, each once.
    fn take(&self) -> Vec<Case> {
        let mut all: Vec<Case> = Vec::new();
        for case in std::mem::take(&mut *self.heads.lock().unwrap()).iter().flat_map(|head| cases_of(head)) {
            if !all.contains(&case) {
                all.push(case);
            }
        }
        all
    }
}

fn pass_on(client: &mut impl BufRead, mut server: &TcpStream, heads: &Mutex<Vec<String>>) -> std::io::Result<()> {
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if client.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().unwrap())
        });
        assert!(!head.to_lowercase().contains("transfer-encoding"), "a body without a length: {head}");
        server.write_all(head.as_bytes())?;
        heads.lock().unwrap().push(head);
        std::io::copy(&mut client.take(length.unwrap_or(0)), &mut server)?;
    }
}

/// What becomes of each case.
fn evaluate(kit: &Path, prefix: &str, cases: &[(&str, Case)]) -> Vec<String> {
    let read = |role: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(kit.join(format!("policies/{role}.json"))).unwrap()).unwrap()
    };
    let everything =
        json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]});
    let mut policies = json!({"everything": everything});
    for role in ["agent", "keeper", "restorer", "watcher"] {
        policies[role] = read(role);
    }
    let asked: Vec<Value> = cases.iter().map(|(role, case)| case.asked_by(role, prefix)).collect();
    let input = json!({"policies": policies, "bucketPolicy": read("create-only"), "cases": asked}).to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/evaluate.mjs");
    let mut node = Command::new(installed("../iam/bin/node"))
        .arg(script)
        .arg(installed("../iam/node_modules"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    node.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success(), "the simulator failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The server, with a bucket that has versions and locks.
fn bucket() -> &'static Server {
    static MADE: OnceLock<()> = OnceLock::new();
    let server = seaweedfs();
    MADE.get_or_init(|| {
        administer(server, |client| async move {
            client.create_bucket().bucket(BUCKET).object_lock_enabled_for_bucket(true).send().await.unwrap();
        });
    });
    server
}

#[test]
fn whatever_a_role_asks_is_allowed_to_it_under_the_bucket_policy() {
    let server = bucket();
    let recorder = Recorder::start(server.port);
    let repo = format!("s3://{BUCKET}/{PREFIX}?endpoint=http://127.0.0.1:{}", recorder.port);
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", &repo], 0);
    // One under locks; one that expires.
    let source = |name: &str, path: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nkind = \"files\"\npath = \"{path}\"\nretention = {{ last = 1, daily = 1 }}\n"
        )
    };
    configure(at, &format!("{}[source.tier.daily]\nlock = \"1d\"\n{}", source("app", "app"), source("etc", "app/etc")));
    expect(at, &["kit", "kit"], 0);
    let keeper = tempfile::tempdir().unwrap();
    fs::copy(at.join("blackstart/keys/recovery.key"), keeper.path().join("key")).unwrap();
    expect(keeper.path(), &["init", "--repo", &repo, "--identity", "key", "--role", "keeper"], 0);
    configure(
        keeper.path(),
        "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\nretention = { last = 1 }\n",
    );
    // What making a repository and keys asks is asked once, by its owner.
    recorder.take();

    let mut asked: Vec<(&str, Case)> = Vec::new();
    let mut by = |role: &'static str, home: &Path, arguments: &[&str], code: i32| {
        expect(home, arguments, code);
        asked.extend(recorder.take().into_iter().map(|case| (role, case)));
    };
    by("agent", at, &["backup"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    by("agent", at, &["backup"], 0);
    by("agent", at, &["verify"], 0);
    by("agent", at, &["drill"], 0);
    by("agent", at, &["status"], 0);
    by("keeper", keeper.path(), &["prune"], 0);
    by("keeper", keeper.path(), &["verify"], 0);
    let root = root_of(at);
    let named = ["--repo", &repo, "--root", &root];
    by(
        "restorer",
        keeper.path(),
        &[&["restore", "app", "--to", "back", "--identity", "key", "--dry-run"], &named[..]].concat(),
        0,
    );
    by("watcher", keeper.path(), &[&["watch"], &named[..]].concat(), 0);

    for (role, action) in [
        ("agent", "s3:PutObject"),
        ("agent", "s3:GetObject"),
        ("keeper", "s3:PutObject"),
        ("watcher", "s3:ListBucketVersions"),
    ] {
        assert!(
            asked.iter().any(|(r, case)| *r == role && case.action == action),
            "the {role} has not asked for {action}: nothing is shown"
        );
    }
    let judged = evaluate(&at.join("kit"), PREFIX, &asked);
    let refused: Vec<_> = asked.iter().zip(&judged).filter(|(_, judged)| *judged != "Allowed").collect();
    assert!(refused.is_empty(), "what the binary asks, and its role may not: {refused:#?}");
}

/// Who asks for what, and what must become of it.
fn judgements() -> Vec<(&'static str, Case, &'static str)> {
    let created = || json!({"s3:ObjectCreationOperation": "true", "s3:if-none-match": "*"});
    let put = || json!({"s3:ObjectCreationOperation": "true"});
    let part = || json!({"s3:ObjectCreationOperation": "false"});
    let (allowed, implicitly, explicitly) = ("Allowed", "ImplicitlyDenied", "ExplicitlyDenied");
    let write_once = [
        "packs/app/aa/x",
        "index/app/aa/x",
        "snapshots/app/0000000001",
        "wal/app/stretches/1",
        "drills/app/0000000001",
    ];
    let mut wanted: Vec<(&'static str, Case, &'static str)> = Vec::new();
    for key in write_once {
        // CompleteMultipartUpload is asked as PutObject is; so are the calls before it, which create nothing.
        wanted.push(("agent", Case::of("s3:PutObject", key, created()), allowed));
        wanted.push(("agent", Case::of("s3:PutObject", key, put()), explicitly));
        wanted.push(("agent", Case::of("s3:PutObject", key, part()), allowed));
        wanted.push(("agent", Case::of("s3:DeleteObject", key, json!({})), implicitly));
        wanted.push(("agent", Case::of("s3:DeleteObjectVersion", key, json!({})), implicitly));
        wanted.push(("agent", Case::of("s3:BypassGovernanceRetention", key, json!({})), implicitly));
        wanted.push(("keeper", Case::of("s3:DeleteObjectVersion", key, json!({})), allowed));
        wanted.push(("keeper", Case::of("s3:BypassGovernanceRetention", key, json!({})), implicitly));
        for role in ["restorer", "watcher"] {
            wanted.push((role, Case::of("s3:PutObject", key, created()), implicitly));
            wanted.push((role, Case::of("s3:DeleteObject", key, json!({})), implicitly));
        }
        // Whatever else a credential may: the bucket's own policy stands.
        wanted.push(("everything", Case::of("s3:PutObject", key, put()), explicitly));
        wanted.push((
            "everything",
            Case::of("s3:PutObject", key, json!({"s3:ObjectCreationOperation": "true", "s3:if-match": "\"x\""})),
            explicitly,
        ));
    }
    for key in ["trust/0000000002", "repository.json", "README.txt", "recover.py", "recover-log.py"] {
        wanted.push(("agent", Case::of("s3:PutObject", key, created()), implicitly));
        wanted.push(("everything", Case::of("s3:PutObject", key, created()), allowed));
        wanted.push(("everything", Case::of("s3:PutObject", key, put()), explicitly));
    }
    // The one key that is replaced; others' sources; data by the keeper; the policy itself.
    let swapped = json!({"s3:ObjectCreationOperation": "true", "s3:if-match": "\"x\""});
    wanted.push(("agent", Case::of("s3:PutObject", "leases/app", swapped), allowed));
    wanted.push(("agent", Case::of("s3:PutObject", "packs/another/aa/x", created()), implicitly));
    wanted.push(("agent", Case::of("s3:PutObject", "leases/another", put()), implicitly));
    wanted.push(("keeper", Case::of("s3:PutObject", "packs/app/aa/x", created()), implicitly));
    wanted.push(("watcher", Case::of("s3:GetObject", "packs/app/aa/x", json!({})), implicitly));
    wanted.push(("watcher", Case::of("s3:GetObject", "snapshots/app/0000000001", json!({})), allowed));
    wanted.push(("restorer", Case::of("s3:RestoreObject", "packs/app/aa/x", json!({})), allowed));
    for role in ["agent", "keeper", "restorer", "watcher"] {
        for action in [
            "s3:PutBucketPolicy",
            "s3:DeleteBucketPolicy",
            "s3:PutLifecycleConfiguration",
            "s3:PutBucketVersioning",
            "s3:DeleteBucket",
        ] {
            wanted.push((role, Case { action, key: None, context: json!({}) }, implicitly));
        }
        wanted.push((
            role,
            Case { action: "s3:ListBucket", key: None, context: json!({"s3:prefix": "another/"}) },
            implicitly,
        ));
    }
    wanted
}

#[test]
fn what_must_never_happen_is_refused_whoever_asks() {
    let server = bucket();
    let home = home();
    let at = home.path();
    let repo = format!("s3://{BUCKET}/{OTHER_PREFIX}?endpoint={}", server.endpoint());
    expect(at, &["init", "--repo", &repo], 0);
    configure(at, "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\n");
    expect(at, &["kit", "kit"], 0);
    let wanted = judgements();
    let cases: Vec<(&str, Case)> = wanted.iter().map(|(role, case, _)| (*role, case.clone())).collect();
    let judged = evaluate(&at.join("kit"), OTHER_PREFIX, &cases);
    let wrong: Vec<_> = wanted.iter().zip(&judged).filter(|((_, _, wanted), judged)| wanted != judged).collect();
    assert!(wrong.is_empty(), "judged otherwise than wanted: {wrong:#?}");
}
