//! One application with a configuration tree, SQLite, Chroma, PostgreSQL and Redis: lost, and brought back onto an empty root by one plan, which
//! starts the engines, asks them, and measures. First rehearsed, then for real.

use super::asked::{add, empty, says};
use super::plan;
use crate::support::binary::{expect, root_of};
use crate::support::engines::{Server, make, python};
use crate::support::postgres::{Cluster, as_user, installed};
use crate::support::servers::free_ports;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The application: it answers with the number of its orders, as far as its configuration lets it.
const PROGRAM: &str = r#"
import http.server, os, sqlite3, sys
port, pid, database = int(sys.argv[1]), sys.argv[2], sys.argv[3]
greeting = open(os.path.join(os.path.dirname(sys.argv[0]), "greeting")).read().strip()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        count = sqlite3.connect(database).execute("select count(*) from orders").fetchone()[0]
        self.send_response(200 if count else 503)
        self.end_headers()
        self.wfile.write(("%s: %d orders" % (greeting, count)).encode())
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", port), Answer)
if os.fork():
    sys.exit()
os.setsid()
for fd in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), fd)
open(pid, "w").write(str(os.getpid()))
server.serve_forever()
"#;

const STAGES: &str = r#"
about = "the whole application on an empty machine"
rpo = "1h"
rto = "10m"
[variables]
root = "ROOT"

[[stage]]
name = "configuration"
budget = "1m"
restore = { source = "app", to = "${root}/app" }
[[stage]]
name = "orders"
budget = "1m"
restore = { source = "orders", to = "${root}/orders" }
[[stage]]
name = "vectors"
budget = "3m"
restore = { source = "vectors", to = "${root}/vectors" }
[[stage]]
name = "postgres"
budget = "3m"
restore = { source = "pg", to = "${root}/pg", version = "15" }
[[stage]]
name = "cache"
budget = "1m"
restore = { source = "cache", to = "${root}/cache" }

[[stage]]
name = "copies"
timeout = "3m"
check = [
  { source = "orders", sql = "pragma integrity_check", equals = "ok" },
  { name = "newest order", source = "orders", newest = "select max(at) from orders", within = "2h" },
  { name = "configuration files", files = "${copy.app}", at_least = 2 },
  { name = "vectors", chroma = "alpha", at_least = 199 },
  { chroma = "alpha", nearest_to = "id9" },
]
[[stage]]
name = "start postgres"
run = [USER "PGBIN/pg_ctl", "start", "-w", "-D", "${copy.pg}", "-l", "${root}/pg.log", "-o", "-p PGPORT -c unix_socket_directories=${root}/run -c listen_addresses="]
[[stage]]
name = "start redis"
after = ["copies"]
# It returns before the server listens: the checks below have to wait for that.
run = ["sh", "-c", "(sleep 1; exec redis-server --dir ${copy.cache} --port 0 --unixsocket ${root}/run/redis --pidfile ${root}/redis.pid --daemonize yes --save '') > /dev/null 2>&1 &"]
[[stage]]
name = "start the application"
after = ["copies"]
run = ["python3", "${copy.app}/app.py", "PORT", "${root}/app.pid", "${copy.orders}/orders.db"]
drill = { run = ["python3", "${copy.app}/app.py", "PORT", "${scratch}/app.pid", "${copy.orders}/orders.db"] }
[[stage]]
name = "engines"
after = ["postgres", "cache"]
check = [
  { name = "customers", source = "pg", database = "shop", sql = "select count(*) from customers", at_least = 3, at = "postgres://postgres@/postgres?host=${root}/run&port=PGPORT" },
  { name = "newest customer", source = "pg", database = "shop", newest = "select max(at) from customers", within = "2h", at = "postgres://postgres@/postgres?host=${root}/run&port=PGPORT" },
  { name = "session", redis = ["GET", "session:1"], equals = "alice", at = "unix://${root}/run/redis" },
  { name = "sessions", redis = ["DBSIZE"], at_least = 2, at = "unix://${root}/run/redis" },
]
[[stage]]
name = "health"
after = ["start the application"]
timeout = "20s"
drill = "run"
check = [{ name = "health", http = "http://127.0.0.1:PORT/", contains = "hello: 3 orders" }]
[[stage]]
name = "end of the rehearsal"
run = ["true"]
drill = { run = ["sh", "-c", "kill $(cat ${scratch}/app.pid)"] }
"#;

/// Ends what the plan has started, by the pids that it left.
struct Started(PathBuf);

impl Drop for Started {
    fn drop(&mut self) {
        // PostgreSQL waits for its clients on TERM; what a shell started in the background ignores QUIT.
        for (file, signal) in [("pg/postmaster.pid", "-QUIT"), ("redis.pid", "-TERM"), ("app.pid", "-TERM")] {
            let text = fs::read_to_string(self.0.join(file)).unwrap_or_default();
            if let Some(pid) = text.lines().next().filter(|pid| pid.parse::<u32>().is_ok()) {
                drop(Command::new("kill").args([signal, pid]).status());
            }
        }
    }
}

/// What the application has before the disaster. The servers end when they are dropped.
fn originals(at: &Path) -> (Cluster, Server) {
    fs::create_dir(at.join("app")).unwrap();
    fs::write(at.join("app/app.py"), PROGRAM).unwrap();
    fs::write(at.join("app/greeting"), "hello\n").unwrap();
    let orders = rusqlite::Connection::open(at.join("orders.db")).unwrap();
    orders
        .execute_batch(
            "create table orders (n integer, at text); insert into orders values (1, datetime('now')), (2, datetime('now')), (3, datetime('now'))",
        )
        .unwrap();
    make("1.5.9", &at.join("vectors"), 16, 200);
    let cluster = Cluster::new(15);
    cluster.sql("create database shop");
    let shop = cluster.url("postgres").replace("/postgres?", "/shop?");
    let address = blackstart::source::postgres::client::Address::parse(&shop).unwrap();
    let session = blackstart::source::postgres::client::Session::Plain;
    let mut client = blackstart::source::postgres::client::Client::connect(&address, session).unwrap();
    client.query("create table customers (name text, at timestamptz default now()); insert into customers values ('a'), ('b'), ('c')").unwrap();
    let server = Server::start("redis-server", "");
    server.run("SET session:1 alice");
    server.run("SET session:2 bob");
    add(at, "app", "files", "path = \"app\"");
    add(at, "orders", "sqlite", "path = \"orders.db\"");
    let python = python("1.5.9").display().to_string();
    add(at, "vectors", "chroma", &format!("path = \"vectors\"\n[source.chroma]\npython = \"{python}\""));
    add(at, "pg", "postgres", &format!("url = \"{}\"", cluster.url("postgres")));
    add(at, "cache", "redis", &format!("url = \"{}\"", server.url()));
    (cluster, server)
}

fn text(root: &Path) -> String {
    let ports = free_ports::<2>().map(|port| port.to_string());
    let user: String = as_user().iter().map(|word| format!("{word:?}, ")).collect();
    let bin = installed(15).display().to_string();
    STAGES
        .replace("ROOT", root.to_str().unwrap())
        .replace("PGBIN", &bin)
        .replace("USER", &user)
        .replace("PGPORT", &ports[0])
        .replace("PORT", &ports[1])
}

#[test]
fn an_application_comes_back_onto_an_empty_root() {
    let home = empty();
    let at = home.path();
    fs::set_permissions(at, fs::Permissions::from_mode(0o711)).unwrap();
    let originals = originals(at);
    let root = at.join("root");
    plan(at, "disaster", &text(&root));
    expect(at, &["backup"], 0);

    let drilled = expect(at, &["drill", "--plan", "disaster"], 0);
    says(&drilled, &["ok      vectors: 199", "ok      customers: 3", "ok      session: alice", "ok      health: 200"]);
    says(
        &drilled,
        &["Plan disaster (drill): PASSED", "ok      RPO: ", "ok      RTO: ", "not tested: start postgres (run)"],
    );
    assert!(!root.exists(), "a drill touched the root");
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0);
    // What the plan's drill proves of its sources is proven: restores may rely on it.
    expect(at, &["status"], 0);

    // The disaster. What is left: the repository, the keys, the configuration.
    drop(originals);
    for gone in ["app", "vectors"] {
        fs::remove_dir_all(at.join(gone)).unwrap();
    }
    fs::remove_file(at.join("orders.db")).unwrap();
    fs::create_dir(&root).unwrap();
    fs::create_dir(root.join("run")).unwrap();
    fs::write(root.join("pg.log"), "").unwrap();
    crate::support::postgres::own(&root.join("run"));
    crate::support::postgres::own(&root.join("pg.log"));
    let _started = Started(root.clone());
    let real = expect(at, &["restore", "--plan", "disaster", "--confirm", "disaster"], 0);
    says(
        &real,
        &[
            "ok      search in alpha for id9: id9",
            "ok      customers: 3",
            "ok      newest customer: ",
            "ok      sessions: 2",
        ],
    );
    says(&real, &["ok      health: 200", "Plan disaster (real): PASSED", "ok      RPO: ", "ok      RTO: "]);

    let report = expect(at, &["report", "show", "plan.disaster", "--json"], 0).json()["report"]["report"].clone();
    assert_eq!(
        (report["mode"].as_str(), report["n"].as_u64(), report["passed"].as_bool()),
        (Some("real"), Some(2), Some(true))
    );
    assert_eq!((report["rpo_met"].as_bool(), report["rto_met"].as_bool()), (Some(true), Some(true)), "{report}");
    assert_eq!(report["points"].as_array().unwrap().len(), 5);
    assert!(
        report["achieved_rto_seconds"].as_f64().unwrap() > 0.0
            && report["rpo_exposure_seconds"].as_f64().unwrap() > 0.0
    );
    for n in ["1", "2"] {
        expect(at, &["report", "show", "plan.disaster", n, "--to", &format!("out{n}")], 0);
    }
    expect(at, &["report", "verify", "out1/report.signed", "out2/report.signed", "--root", &root_of(at)], 0);
}
