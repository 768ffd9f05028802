//! Drills of every level, evidence, suspect snapshots, bisection and restore plans, through the binary: real files, real SQLite, real servers.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and files need no durability"
)]

#[path = "../support/mod.rs"]
mod support;

mod application;
mod asked;
mod broken;
mod evidence;
mod groups;
mod limits;
mod matrix;
mod period;
mod run;
mod text;

use std::fs;
use std::path::Path;
use support::binary::{configure, expect, home};

/// A repository with the sources `app` (the tree) and `orders` (the database in it), nothing backed up yet.
fn protected() -> tempfile::TempDir {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "scratch = \"scratch\"\n");
    configure(at, "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\nexclude = [\"*.db\", \"*.db-*\"]\n");
    configure(at, "[[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\n");
    home
}

/// Runs SQL in the live database.
fn sql(at: &Path, text: &str) {
    rusqlite::Connection::open(at.join("app/orders.db")).unwrap().execute_batch(text).unwrap();
}

fn plan(at: &Path, name: &str, text: &str) {
    fs::create_dir_all(at.join("restore-plans")).unwrap();
    fs::write(at.join(format!("restore-plans/{name}.toml")), text).unwrap();
}
