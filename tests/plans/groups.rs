//! A stage that restores a group: PostgreSQL, SQLite and files come back from one common point, where each store's newest snapshot would not fit.

use super::asked::{add, empty, says};
use super::plan;
use crate::support::binary::{configure, expect};
use crate::support::postgres::{Cluster, installed};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const MAJOR: u32 = 17;

/// A shop: each payment in PostgreSQL refers to an order in SQLite, and a file names the newest order.
struct Shop {
    home: tempfile::TempDir,
    cluster: Cluster,
}

impl Shop {
    fn new() -> Shop {
        let home = empty();
        let at = home.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(at.join("etc")).unwrap();
        let orders = rusqlite::Connection::open(at.join("orders.db")).unwrap();
        orders.execute_batch("create table orders (n integer)").unwrap();
        let cluster = Cluster::new(MAJOR);
        cluster.sql("create table payments (order_n int)");
        let (url, bin) = (cluster.url("postgres"), installed(MAJOR).display().to_string());
        add(at, "orders", "sqlite", "path = \"orders.db\"");
        add(at, "etc", "files", "path = \"etc\"");
        add(
            at,
            "pg",
            "postgres",
            &format!("url = \"{url}\"\n[source.postgres]\nbin = \"{bin}\"\ntransport = \"files\""),
        );
        configure(at, "[[group]]\nname = \"shop\"\nsources = [\"orders\", \"etc\", \"pg\"]\n");
        Shop { home, cluster }
    }

    fn at(&self) -> &Path {
        self.home.path()
    }

    /// An order, then its payment.
    fn sell(&self, n: u32) {
        let orders = rusqlite::Connection::open(self.at().join("orders.db")).unwrap();
        orders.execute("insert into orders values (?1)", [n]).unwrap();
        fs::write(self.at().join("etc/newest"), n.to_string()).unwrap();
        self.cluster.sql(&format!("insert into payments values ({n})"));
    }

    fn report(&self, plan: &str) -> Value {
        expect(self.at(), &["report", "show", &format!("plan.{plan}"), "--json"], 0).json()["report"]["report"].clone()
    }
}

/// Every payment has its order: with one order there is one payment.
const CHECKS: &str = r#"
[[stage]]
name = "payments have orders"
timeout = "2m"
check = [
  { name = "orders", source = "orders", sql = "select max(n) from orders", equals = "1" },
  { name = "payments", source = "pg", sql = "select max(order_n) from payments", at_most = 1 },
]
"#;

#[test]
fn a_reference_between_stores_holds_from_a_common_point_only() {
    let shop = Shop::new();
    let at = shop.at();
    shop.sell(1);
    expect(at, &["backup", "--group", "shop"], 0);
    shop.sell(2);
    // PostgreSQL alone goes on: its newest snapshot knows a payment of which the newest of SQLite has no order.
    expect(at, &["backup", "pg"], 0);
    let each = ["orders", "etc", "pg"]
        .map(|s| format!("[[stage]]\nname = \"{s}\"\nrestore = {{ source = \"{s}\", to = \"x/{s}\" }}\n"));
    plan(at, "each", &format!("{}{CHECKS}", each.concat()));
    let broken = expect(at, &["drill", "--plan", "each"], 4);
    says(&broken, &["ok      orders: 1", "FAILED  payments: expected at most 1, found: 2"]);
    plan(
        at,
        "together",
        &format!("[[stage]]\nname = \"data\"\nrestore = {{ group = \"shop\", to = \"x\" }}\n{CHECKS}"),
    );
    let whole = expect(at, &["drill", "--plan", "together"], 0);
    says(&whole, &["point 1 of group shop, within ", "ok      orders: 1", "ok      payments: 1", "PASSED"]);
    let report = shop.report("together");
    let point = &report["stages"][0]["group"];
    assert_eq!((point["group"].as_str(), point["n"].as_u64()), (Some("shop"), Some(1)), "{report}");
    let members: Vec<&str> =
        point["members"].as_array().unwrap().iter().map(|m| m["source"].as_str().unwrap()).collect();
    assert_eq!(members, ["etc", "orders", "pg"]);
    assert_eq!(report["points"].as_array().unwrap().len(), 3, "the points of a plan are those of all its sources");
    assert!(!at.join("x").exists() && fs::read_dir(at.join("scratch")).unwrap().count() == 0);
    // It is a drill of each member, at that point.
    let drilled = expect(at, &["report", "show", "pg", "--json"], 0).json()["report"]["report"].clone();
    assert_eq!((drilled["seq"].as_u64(), drilled["point"].as_str()), (Some(1), Some("point 1 of group shop")));
    let shown = expect(at, &["snapshots"], 0);
    assert!(shown.out.contains("verified"), "{}", shown.out);
    // A point that has lost a member is no point any more, and the plan says so.
    fs::remove_file(at.join("repo/snapshots/orders/0000000001")).unwrap();
    let lost = expect(at, &["drill", "--plan", "together"], 4);
    says(&lost, &["data: FAILED", "no good point of group shop"]);
}

#[test]
fn a_real_run_that_stopped_between_members_goes_on_with_the_same_point() {
    let mut shop = Shop::new();
    let at = shop.at().to_owned();
    shop.sell(1);
    expect(&at, &["backup", "--group", "shop"], 0);
    let mut copy = Cluster::empty(MAJOR);
    let root = copy.directory.join("root");
    fs::create_dir(&root).unwrap();
    // Where a file is in the way of a directory, the last member cannot arrive.
    fs::write(root.join("late"), "in the way").unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/old"), "old").unwrap();
    let to = format!("{{ etc = \"{0}/etc\", orders = \"{0}/orders\", pg = \"{0}/late/pg\" }}", root.display());
    let checks = "[[stage]]\nname = \"orders\"\ncheck = [{ source = \"orders\", sql = \"select max(n) from orders\", equals = \"1\" }]\n";
    plan(
        &at,
        "real",
        &format!("[[stage]]\nname = \"data\"\nrestore = {{ group = \"shop\", to = {to}, replace = true }}\n{checks}"),
    );
    let stopped = expect(&at, &["restore", "--plan", "real", "--confirm", "real"], 1);
    says(&stopped, &["restores group shop to one point: etc to ", "data: FAILED", "--resume"]);
    assert!(root.join("orders/orders.db").is_file() && !root.join("late/pg").exists());
    // The application goes on, and is backed up again: the run does not go over to the newer point half-way.
    shop.sell(2);
    expect(&at, &["backup", "--group", "shop"], 0);
    fs::remove_file(root.join("late")).unwrap();
    let resumed = expect(&at, &["restore", "--plan", "real", "--confirm", "real", "--resume"], 0);
    says(&resumed, &["point 1 of group shop", "orders 1 was restored before", "pg 1 to ", "ok      select max(n)"]);
    let report = shop.report("real");
    let point = &report["stages"][0]["group"];
    assert_eq!((point["n"].as_u64(), point["members"].as_array().unwrap().len()), (Some(1), 3), "{report}");
    let kept = point["members"][0]["kept"].as_str().unwrap();
    assert_eq!(fs::read_to_string(Path::new(kept).join("old")).unwrap(), "old", "what was there is kept beside");
    assert_eq!(fs::read_to_string(root.join("etc/newest")).unwrap(), "1");
    shop.cluster.stop();
    copy.data = root.join("late/pg");
    copy.configure("");
    copy.start();
    copy.await_recovery();
    assert_eq!(copy.value("select max(order_n) from payments"), "1");
}

#[test]
fn a_rollback_takes_back_every_member() {
    let home = super::protected();
    let at = home.path();
    configure(at, "[[group]]\nname = \"shop\"\nsources = [\"app\", \"orders\"]\n");
    expect(at, &["backup", "--group", "shop"], 0);
    for name in ["app", "orders"] {
        fs::create_dir_all(at.join("live").join(name)).unwrap();
        fs::write(at.join("live").join(name).join("old"), "old").unwrap();
    }
    plan(
        at,
        "p",
        "[[stage]]\nname = \"data\"\nrestore = { group = \"shop\", to = \"live\", replace = true }\n\
         [[stage]]\nname = \"rows\"\ncheck = [{ source = \"orders\", sql = \"select count(*) from t\", at_least = 4 }]\non_failure = \"rollback\"\n",
    );
    let undone = expect(at, &["restore", "--plan", "p", "--confirm", "p"], 4);
    says(&undone, &["rows: FAILED", "what was done is taken back"]);
    for name in ["app", "orders"] {
        assert!(at.join("live").join(name).join("old").exists(), "{name} is not as it was: {}", undone.all());
    }
}

#[test]
fn what_a_stage_says_of_a_group_must_fit_it() {
    let home = super::protected();
    let at = home.path();
    configure(at, "[[group]]\nname = \"shop\"\nsources = [\"app\", \"orders\"]\n");
    let refused = |restore: &str, word: &str| {
        plan(at, "p", &format!("[[stage]]\nname = \"a\"\nrestore = {{ {restore} }}\n"));
        let said = expect(at, &["drill", "--plan", "p"], 78).err;
        assert!(said.contains("p.toml, line") && said.contains(word), "{word:?} is not in {said}");
    };
    refused("group = \"shoo\", to = \"x\"", "shoo is no group of");
    refused("group = \"shop\", source = \"app\", to = \"x\"", "a source or a group");
    refused("to = \"x\"", "a source or a group");
    refused("group = \"shop\", to = { app = \"x\" }", "does not say where orders goes");
    refused("group = \"shop\", to = { app = \"x\", orders = \"y\", etc = \"z\" }", "names etc, which is not in");
    refused("source = \"app\", to = { app = \"x\" }", "`to` of a source is one path");
    refused("group = \"shop\", to = \"x\", version = \"3\"", "are of one source");
    refused("group = \"shop\", to = \"${nowhere}\"", "${nowhere} is not known");
    plan(
        at,
        "p",
        "[[stage]]\nname = \"a\"\nrestore = { source = \"app\", to = \"x\" }\n[[stage]]\nname = \"b\"\nrestore = { group = \"shop\", to = \"y\" }\n",
    );
    assert!(expect(at, &["drill", "--plan", "p"], 78).err.contains("app is restored by a stage above already"));
    // A point of before the group had this member has nothing to bring back of it.
    let path = at.join("blackstart.toml");
    let grown = fs::read_to_string(&path).unwrap();
    configure(at, "[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n");
    expect(at, &["backup", "--group", "shop"], 0);
    let grown = grown.replace("[\"app\", \"orders\"]", "[\"app\", \"orders\", \"etc\"]");
    fs::write(&path, format!("{grown}[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n")).unwrap();
    plan(at, "p", "[[stage]]\nname = \"a\"\nrestore = { group = \"shop\", to = \"x\" }\n");
    let older = expect(at, &["drill", "--plan", "p"], 4);
    says(&older, &["point 1 of group shop was made without etc", "backup --group shop"]);
}
