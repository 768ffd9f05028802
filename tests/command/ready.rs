//! The job files for things that have a dump tool: each is loaded as it is shipped, and run with its paths and addresses replaced. Git is the real one;
//! where the real server cannot be installed, a program or a server stands in that speaks the documented interface.

use super::home;
use super::support::binary::{Random, command, expect, finish, noise};
use blackstart::source::command::Options;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schedules").join(name)
}

/// Puts a job file into `home`, with other places in it.
fn job(home: &Path, name: &str, places: &[(&str, &str)]) {
    let mut text = fs::read_to_string(shipped(&format!("{name}.toml"))).unwrap();
    // As it is shipped it is switched off.
    assert!(text.contains("\nenabled = false\n"), "{name}");
    text = text.replace("\nenabled = false\n", "\n");
    let programs = shipped("programs").display().to_string();
    for (from, to) in [("/usr/share/blackstart/programs", programs.as_str())].iter().chain(places) {
        assert!(text.contains(from) || from.contains("programs"), "{name} has no {from}");
        text = text.replace(from, to);
    }
    fs::create_dir_all(home.join("schedules")).unwrap();
    fs::write(home.join("schedules").join(format!("{name}.toml")), text).unwrap();
}

/// An executable for `$PATH` of the programs.
fn program(home: &Path, name: &str, script: &str) {
    fs::create_dir_all(home.join("bin")).unwrap();
    let path = home.join("bin").join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs blackstart with the programs of `home` in front.
fn with_programs(home: &Path, arguments: &[&str], code: i32) -> String {
    let mut command = command(home, arguments);
    let path = std::env::var("PATH").unwrap();
    let ran = finish(&command.env("PATH", format!("{}:{path}", home.join("bin").display())).output().unwrap());
    assert_eq!(ran.code, code, "{arguments:?}\n{}", ran.all());
    ran.all()
}

#[test]
fn every_job_file_is_sound_as_it_is_shipped() {
    let home = home();
    let at = home.path();
    for name in ["mongodb", "kubernetes", "git", "qdrant", "elasticsearch"] {
        job(at, name, &[]);
        let text = fs::read_to_string(shipped(&format!("{name}.toml"))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        let options: Options = table["source"]["command"].clone().try_into().unwrap();
        options.validate().unwrap();
        for stream in options.streams().unwrap() {
            for argv in [&stream.dump, &stream.restore, &stream.verify] {
                assert!(!argv.is_empty(), "{name} has a way to dump, to restore and to verify");
                if let Some(ours) = argv[0].strip_prefix("/usr/share/blackstart/programs/") {
                    assert!(shipped("programs").join(ours).exists(), "{ours}");
                }
            }
        }
    }
    // The configuration takes them all in.
    let listed = expect(at, &["status", "--json"], 4).json();
    assert_eq!(listed["report"]["sources"].as_array().unwrap().len(), 5, "{listed}");
}

#[test]
fn a_git_repository_comes_back_from_its_bundle() {
    let home = home();
    let at = home.path();
    let git = |directory: &Path, arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(arguments).current_dir(directory);
        let output = git.output().expect("git is missing: run scripts/test-servers");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let work = at.join("project");
    fs::create_dir(&work).unwrap();
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    let commit = |seed: u64| {
        fs::write(work.join(format!("file-{seed}")), noise(seed, 300_000)).unwrap();
        git(&work, &["add", "."]);
        git(&work, &["commit", "--quiet", "-m", &format!("change {seed}")]);
    };
    (0..10).for_each(commit);
    git(&work, &["tag", "v1"]);
    job(at, "git", &[("/srv/git/project.git", "project"), ("/srv/git/project-restored.git", "restored.git")]);
    expect(at, &["backup", "git"], 0);
    commit(99);
    git(&work, &["branch", "side", "HEAD~2"]);
    let second = expect(at, &["backup", "git", "--json"], 0).json();
    let stored = second["report"]["sources"][0]["stats"]["bytes_stored"].as_u64().unwrap();
    assert!(stored < 1_000_000, "{stored} bytes stored for a commit of 300 kB in a repository of 3.3 MB");
    let drill = expect(at, &["drill", "git"], 0);
    assert!(drill.out.contains("git on project.bundle: sound"), "{}", drill.out);
    expect(at, &["restore", "git", "--into", "--confirm", "git"], 0);
    assert_eq!(git(&at.join("restored.git"), &["show-ref"]), git(&work, &["show-ref"]));
    // A branch that is to be restored into a repository that is there already is refused by Git itself.
    expect(at, &["restore", "git", "--into", "--confirm", "git"], 1);
}

/// An archive as mongodump writes it: the magic number, then blocks that end with a terminator.
#[test]
fn mongodb_goes_through_its_tools() {
    let home = home();
    let at = home.path();
    let archive = [&[0x6d, 0xe2, 0x99, 0x81][..], &noise(4, 1_000_000), &[0xff; 4]].concat();
    fs::write(at.join("archive"), &archive).unwrap();
    program(
        at,
        "mongodump",
        "#!/bin/sh\n[ \"$2 $3\" = '--archive --oplog' ] || exit 64\necho 'done dumping' >&2\nexec cat archive\n",
    );
    program(
        at,
        "mongorestore",
        "#!/bin/sh\nfor last; do :; done\n[ \"$last\" = --dryRun ] && exec cmp - archive\nexec cat > taken\n",
    );
    job(at, "mongodb", &[]);
    with_programs(at, &["backup", "mongodb"], 0);
    with_programs(at, &["drill", "mongodb"], 0);
    with_programs(at, &["restore", "mongodb", "--into", "--confirm", "mongodb"], 0);
    assert!(fs::read(at.join("taken")).unwrap() == archive);
    // mongodump that writes its help, or nothing but the header, is no backup.
    program(at, "mongodump", "#!/bin/sh\necho Usage: mongodump; exit 0\n");
    assert!(with_programs(at, &["backup", "mongodb"], 1).contains("is the least"));
    program(at, "mongodump", "#!/bin/sh\nprintf '\\155\\342\\231\\201'\n");
    assert!(with_programs(at, &["backup", "mongodb"], 1).contains("100 is the least"));
}

#[test]
fn kubernetes_objects_lose_what_belongs_to_their_old_cluster() {
    let home = home();
    let at = home.path();
    let object = |kind: &str, name: &str, more: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"{kind}","metadata":{{"name":"{name}","namespace":"shop","uid":"u-{name}","resourceVersion":"77",
            "creationTimestamp":"2026-01-01T00:00:00Z","managedFields":[{{"manager":"x"}}],"labels":{{"app":"shop"}},
            "annotations":{{"kubectl.kubernetes.io/last-applied-configuration":"{{}}"}}{more}}},"data":{{"key":"dmFsdWU="}},"type":"Opaque"}}"#
        )
    };
    let owned = r#","ownerReferences":[{"kind":"Job","name":"j"}]"#;
    let items = [
        object("Secret", "password", ""),
        object("ConfigMap", "settings", ""),
        object("ConfigMap", "owned", owned),
        object("ConfigMap", "kube-root-ca.crt", ""),
    ];
    let token = object("Secret", "token", "").replace("Opaque", "kubernetes.io/service-account-token");
    let list = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{},{token}]}}"#, items.join(","));
    fs::write(at.join("list.json"), list).unwrap();
    let kubectl = "#!/bin/sh\n[ \"$KUBECONFIG\" = kc ] || exit 9\ncase $1 in get) exec cat list.json;; apply) [ \"$*\" = 'apply --server-side -f -' ] && exec cat > applied;; esac\nexit 64\n";
    program(at, "kubectl", kubectl);
    job(at, "kubernetes", &[("pass = [\"KUBECONFIG\", ", "environment = { KUBECONFIG = \"kc\" }\npass = [")]);
    with_programs(at, &["backup", "kubernetes"], 0);
    with_programs(at, &["drill", "kubernetes"], 0);
    with_programs(at, &["restore", "kubernetes", "--into", "--confirm", "kubernetes"], 0);
    let applied: serde_json::Value = serde_json::from_str(&fs::read_to_string(at.join("applied")).unwrap()).unwrap();
    let names: Vec<&str> =
        applied["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["settings", "password"]);
    let password = &applied["items"][1];
    assert_eq!(
        password["metadata"],
        serde_json::json!({"name": "password", "namespace": "shop", "labels": {"app": "shop"}})
    );
    assert_eq!(password["data"]["key"], "dmFsdWU=");
    // Equal objects in another order, with other versions: not one new byte of data.
    let list = format!(
        r#"{{"apiVersion":"v1","kind":"List","items":[{token},{}]}}"#,
        [&items[1], &items[0]].map(|i| i.replace("77", "78")).join(",")
    );
    fs::write(at.join("list.json"), list).unwrap();
    let again: serde_json::Value =
        serde_json::from_str(&with_programs(at, &["backup", "kubernetes", "--json"], 0)).unwrap();
    assert_eq!(again["report"]["sources"][0]["stats"]["bytes_new"], 0, "{again}");
    program(at, "kubectl", "#!/bin/sh\necho 'secrets is forbidden' >&2; exit 1\n");
    let refused = with_programs(at, &["backup", "kubernetes"], 1);
    assert!(refused.contains("secrets is forbidden") && refused.contains("kubectl exited with 1"), "{refused}");
}

/// One request: method, path with query, body.
type Request = (String, String, Vec<u8>);

/// An HTTP/1.1 server on loopback, one thread a connection; gives its address.
fn serve(answer: impl Fn(&Request) -> (u16, Vec<u8>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || one(connection, &*answer));
        }
    });
    address
}

fn one(mut connection: TcpStream, answer: &dyn Fn(&Request) -> (u16, Vec<u8>)) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line);
    }
    let Some(first) = lines.first() else { return };
    let mut words = first.split(' ');
    let length =
        lines.iter().find_map(|l| l.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let (status, bytes) = answer(&(words.next().unwrap().into(), words.next().unwrap().into(), body));
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", bytes.len());
    // The client may have gone.
    drop(connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&bytes)));
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A tar, as Qdrant's snapshots are.
fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn qdrant_makes_streams_and_removes_a_snapshot() {
    let home = home();
    let at = home.path();
    let snapshot = tar(&[("config.json", b"{}".to_vec()), ("0/segments/x", noise(8, 2_000_000))]);
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let taken: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let short = Arc::new(Mutex::new(false));
    let (log, into, cut, whole) = (Arc::clone(&seen), Arc::clone(&taken), Arc::clone(&short), snapshot.clone());
    let url = serve(move |(method, path, body)| {
        log.lock().unwrap().push(format!("{method} {}", path.split('?').next().unwrap()));
        let base = "/collections/documents/snapshots";
        let (size, sum) = (whole.len(), hex(&whole));
        match (method.as_str(), path.strip_prefix(base).unwrap()) {
            ("POST", "?wait=true") => (200, format!(r#"{{"result":{{"name":"d-1.snapshot","creation_time":"x","size":{size},"checksum":"{sum}"}},"status":"ok"}}"#).into()),
            ("GET", "/d-1.snapshot") if *cut.lock().unwrap() => (200, whole[..size - 100_000].to_vec()),
            ("GET", "/d-1.snapshot") => (200, whole.clone()),
            ("DELETE", "/d-1.snapshot?wait=true") => (200, br#"{"result":true}"#.to_vec()),
            ("POST", upload) if upload.starts_with("/upload?priority=snapshot&wait=true&checksum=") => {
                let start = body.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                let end = body.windows(4).rposition(|w| w == b"\r\n--").unwrap();
                assert!(upload.ends_with(&hex(&body[start..end])));
                *into.lock().unwrap() = Some(body[start..end].to_vec());
                (200, br#"{"result":true}"#.to_vec())
            }
            other => (404, format!("{other:?}").into()),
        }
    });
    job(at, "qdrant", &[("http://127.0.0.1:6333", &url)]);
    expect(at, &["backup", "qdrant"], 0);
    expect(at, &["drill", "qdrant"], 0);
    expect(at, &["restore", "qdrant", "--into", "--confirm", "qdrant"], 0);
    assert!(taken.lock().unwrap().as_ref() == Some(&snapshot));
    *short.lock().unwrap() = true;
    let cut = expect(at, &["backup", "qdrant"], 1);
    assert!(cut.err.contains("bytes, and") && cut.err.contains("Nothing was committed"), "{}", cut.err);
    let seen = seen.lock().unwrap();
    let deleted = seen.iter().filter(|line| line.starts_with("DELETE")).count();
    assert_eq!(deleted, 2, "the server keeps no snapshot, not even of a run that failed: {seen:?}");
}

#[test]
fn elasticsearch_snapshots_count_only_when_they_are_whole() {
    let home = home();
    let at = home.path();
    for folder in ["es/indices/i1/0", "es-new"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::write(at.join("es/index-1"), "{}").unwrap();
    fs::write(at.join("es/indices/i1/0/__blob"), noise(11, 1_500_000)).unwrap();
    let state = Arc::new(Mutex::new("SUCCESS"));
    let snapshots: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let (now, known) = (Arc::clone(&state), Arc::clone(&snapshots));
    let random = Mutex::new(Random(1));
    let url = serve(move |(method, path, _)| {
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        let name = path.rsplit('/').next().unwrap().to_owned();
        let mut known = known.lock().unwrap();
        let failed = usize::from(*now.lock().unwrap() != "SUCCESS");
        let show = |name: &str, time: u64| {
            format!(
                r#"{{"snapshot":"{name}","state":"{}","start_time_in_millis":{time},"shards":{{"total":1,"failed":{failed},"successful":1}}}}"#,
                now.lock().unwrap()
            )
        };
        match method.as_str() {
            "PUT" => {
                // Two snapshots may begin in one millisecond here; the server's own clock goes on.
                let time = known.values().max().unwrap_or(&0) + 1 + random.lock().unwrap().below(5);
                known.insert(name.clone(), time);
                (200, format!(r#"{{"snapshot":{}}}"#, show(&name, time)).into())
            }
            "GET" => {
                let all = name.ends_with('*');
                let listed: Vec<String> =
                    known.iter().filter(|(n, _)| all || **n == name).map(|(n, t)| show(n, *t)).collect();
                (200, format!(r#"{{"snapshots":[{}]}}"#, listed.join(",")).into())
            }
            "DELETE" => {
                known.remove(&name);
                (200, br#"{"acknowledged":true}"#.to_vec())
            }
            "POST" if name == "_restore" => {
                (200, br#"{"snapshot":{"shards":{"total":1,"failed":0,"successful":1}}}"#.to_vec())
            }
            other => (404, other.into()),
        }
    });
    let es = at.join("es").display().to_string();
    job(
        at,
        "elasticsearch",
        &[
            ("http://127.0.0.1:9200", &url),
            ("/var/backups/es-restore", "es-new"),
            ("/var/backups/es\"]", &format!("{es}\"]")),
        ],
    );
    expect(at, &["backup", "elasticsearch"], 0);
    expect(at, &["backup", "elasticsearch"], 0);
    assert_eq!(snapshots.lock().unwrap().len(), 1, "the newest stays, for the next to build on");
    expect(at, &["drill", "elasticsearch"], 0);
    expect(at, &["restore", "elasticsearch", "--into", "--confirm", "elasticsearch"], 0);
    assert!(fs::read(at.join("es-new/indices/i1/0/__blob")).unwrap() == noise(11, 1_500_000));
    let taken = expect(at, &["restore", "elasticsearch", "--into", "--confirm", "elasticsearch"], 1);
    assert!(taken.err.contains("is not empty"), "{}", taken.err);
    *state.lock().unwrap() = "PARTIAL";
    let partial = expect(at, &["backup", "elasticsearch"], 1);
    assert!(partial.err.contains("is PARTIAL, 1 shards failed"), "{}", partial.err);
}
