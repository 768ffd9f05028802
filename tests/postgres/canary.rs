//! The canary of a PostgreSQL server, from the command line.

use crate::physical::Home;
use crate::support::binary;
use crate::support::postgres::{Cluster, Setup};
use blackstart::source::postgres::client::{Address, Client, Session};

fn client_of(cluster: &Cluster, database: &str) -> Client {
    let address = Address { database: Some(database.into()), ..Address::parse(&cluster.url("postgres")).unwrap() };
    Client::connect(&address, Session::Plain).unwrap()
}

fn canary(home: &Home, code: i32) -> serde_json::Value {
    let drill = home.run(&["drill", "pg", "--json"], code).json();
    let report = drill["report"]["sources"][0].clone();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|c| c["name"] == "canary").unwrap();
    assert_eq!(check["passed"], code == 0, "{check}");
    serde_json::json!({"actual": check["actual"], "report": report["canary"]})
}

#[test]
fn a_copy_tells_how_old_it_is() {
    let cluster = Cluster::new(15);
    cluster.sql("create database shop");
    cluster.sql("create table orders as select generate_series(1, 1000) n");
    let mut shop = client_of(&cluster, "shop");
    for mode in ["mode = \"physical\"", "mode = \"logical\""] {
        let home = Home::new(
            &cluster,
            &format!("{mode}\n[source.canary]\nevery = \"1h\"\ndatabase = \"shop\"\nat = \"public.beat\""),
        );
        let checked = binary::run(home.0.path(), &["check"]).all();
        assert!(checked.contains("can be written"), "{checked}");
        let there = "select count(*) from pg_class where relname = 'beat'";
        assert_eq!(shop.value(there).unwrap().as_deref(), Some("0"), "`check` leaves nothing behind");
        home.backup(0);
        let none = home.run(&["drill", "pg"], 0).out;
        assert!(none.contains("not run canary: none is known to have been written"), "{none}");
        home.run(&["canary"], 0);
        home.run(&["canary", "pg"], 0);
        let said = home.run(&["backup"], 0).out;
        assert!(said.contains("pg: its canary was written"), "{said}");
        let found = canary(&home, 0);
        let age = found["report"]["age_seconds"].as_f64().unwrap();
        assert!((-5.0..600.0).contains(&age), "{found}");
        assert_eq!(found["report"]["every_seconds"], 3600);
        // What a backup of other data than was asked for looks like: of an hour ago.
        shop.query("update public.beat set at = at - interval '1 hour'").unwrap();
        home.backup(0);
        let stale = canary(&home, 4);
        assert!(stale["actual"].as_str().unwrap().contains("STALE"), "{stale}");
        shop.query("drop table public.beat").unwrap();
        home.backup(0);
        let missing = canary(&home, 4);
        assert!(missing["actual"].as_str().unwrap().contains("there is no table public.beat in shop"), "{missing}");
        home.run(&["canary"], 0);
        home.run(&["canary", "--remove"], 0);
        assert_eq!(shop.value(there).unwrap().as_deref(), Some("0"), "what was written can be taken away");
    }
}

#[test]
fn rights_that_are_missing_are_named_and_backups_go_on() {
    let cluster = Setup::new(15).start();
    cluster.sql("create role weak login replication");
    let home = Home::with_url(15, &cluster.url("weak"), "transport = \"stream\"\n[source.canary]");
    let refused = home.run(&["canary"], 1).err;
    let grant = "grant select, insert, update, delete on \"public\".\"blackstart_canary\" to \"weak\"";
    assert!(refused.contains("Backups go on") && refused.contains(grant), "{refused}");
    let checked = binary::run(home.0.path(), &["check"]).all();
    assert!(checked.contains("canary of pg") && checked.contains(grant), "{checked}");
    home.backup(0);
    // What the help says does help.
    let create = refused.split("create table").nth(1).unwrap().split(". Or").next().unwrap();
    cluster.sql(&format!("create table{create}"));
    home.run(&["canary"], 0);
    cluster.sql("alter role weak set default_transaction_read_only = on");
    let refused = home.run(&["canary"], 1).err;
    assert!(refused.contains("Name its primary"), "{refused}");
}

#[test]
fn no_table_is_made_that_subscribers_would_stop_at() {
    let cluster = Setup::new(15).start();
    for publication in ["for all tables", "for tables in schema public"] {
        cluster.sql(&format!("create publication everything {publication}"));
        let home = Home::with_url(15, &cluster.url("postgres"), "transport = \"stream\"\n[source.canary]");
        let refused = home.run(&["canary"], 1).err;
        assert!(refused.contains("subscribers") && refused.contains("nothing was changed"), "{publication}: {refused}");
        let checked = binary::run(home.0.path(), &["check"]).all();
        assert!(checked.contains("subscribers"), "{publication}: {checked}");
        // Who has made it knows what they do.
        let create = refused.split("create table").nth(1).unwrap().split(';').next().unwrap();
        cluster.sql(&format!("create table{create}"));
        home.run(&["canary"], 0);
        cluster.sql("drop table blackstart_canary; drop publication everything");
    }
    // A table that is somebody's own is emptied of what was written, and left.
    cluster.sql("create table own (source text primary key, at timestamptz not null, note text)");
    let home =
        Home::with_url(15, &cluster.url("postgres"), "transport = \"stream\"\n[source.canary]\nat = \"public.own\"");
    home.run(&["canary"], 0);
    home.run(&["canary", "--remove"], 0);
    cluster.sql("insert into own (source, at) values ('x', now())");
}
