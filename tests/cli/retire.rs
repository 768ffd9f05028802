//! `retire` as an operator meets it: by name, written down, and the end of alarms and of nothing else.

use super::support::binary::{configure, expect, home, run};
use std::fs;

#[test]
fn a_retired_source_alarms_nobody_and_still_restores() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(
        at,
        "\n[[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\nrpo = \"1s\"\n[source.retention]\nlast = 1\n\
         [[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n\
         [[group]]\nname = \"shop\"\nsources = [\"orders\", \"etc\"]\n",
    );
    expect(at, &["backup", "--group", "shop"], 0);
    expect(at, &["drill"], 0);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    expect(at, &["status"], 5);
    let unconfirmed = expect(at, &["retire", "orders"], 64);
    assert!(unconfirmed.err.contains("--confirm orders"), "{}", unconfirmed.all());
    expect(at, &["retire", "orders", "--confirm", "etc"], 64);
    expect(at, &["retire", "nothing", "--confirm", "nothing"], 64);
    let done = expect(at, &["retire", "orders", "--confirm", "orders", "--why", "moved", "--json"], 0).json();
    assert_eq!((done["report"]["source"].as_str(), done["report"]["seq"].as_u64()), (Some("orders"), Some(2)));
    let again = expect(at, &["retire", "orders", "--confirm", "orders"], 64);
    assert!(again.err.contains("has been retired since"), "{}", again.all());
    let written = expect(at, &["audit"], 0).out;
    assert!(written.contains("retire") && written.contains("orders --confirm orders --why moved"), "{written}");
    // Nobody misses it.
    let status = expect(at, &["status"], 0);
    assert!(status.out.contains("retired ") && status.out.contains("The one source is protected"), "{}", status.all());
    let watched = expect(at, &["watch", "--older-than", "1d", "--bound", "orders=1s"], 0);
    assert!(watched.out.contains("retired "), "{}", watched.all());
    assert!(expect(at, &["verify"], 0).out.contains("orders: retired "));
    assert!(expect(at, &["snapshots"], 0).out.contains("orders was retired"));
    let checked = run(at, &["check"]);
    assert!(checked.out.contains("newest snapshot of orders: the source is retired since"), "{}", checked.all());
    assert!(checked.out.contains("FAILED   group shop: orders is retired"), "{}", checked.all());
    // What is done to all leaves it out; the group says what to do.
    let backup = expect(at, &["backup"], 0);
    assert!(backup.out.contains("orders: retired ") && backup.out.contains("etc: snapshot 2"), "{}", backup.all());
    assert!(expect(at, &["prune"], 0).out.contains("orders: retired "));
    let group = expect(at, &["backup", "--group", "shop"], 64);
    assert!(group.err.contains("orders was retired") && group.err.contains("NO common point"), "{}", group.all());
    // It restores, with the program and without, and goes on when somebody asks for it by name.
    expect(at, &["restore", "orders", "--to", "back"], 0);
    assert!(at.join("back/orders.db").is_file());
    let keys = fs::read_to_string(at.join("blackstart/keys/recovery.key")).unwrap();
    fs::write(at.join("identity"), keys).unwrap();
    let script = std::process::Command::new("python3")
        .arg(at.join("repo/recover.py"))
        .args(["--trust-on-first-use", "--identity"])
        .arg(at.join("identity"))
        .args(["restore", "orders"])
        .arg(at.join("by-hand"))
        .output()
        .unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    assert!(at.join("by-hand/orders.db").is_file());
    expect(at, &["prune", "orders"], 0);
    let revived = expect(at, &["backup", "orders"], 0);
    assert!(revived.err.contains("was retired") && revived.err.contains("takes it up again"), "{}", revived.all());
    std::thread::sleep(std::time::Duration::from_millis(1200));
    expect(at, &["status"], 5);
    expect(at, &["backup", "--group", "shop"], 0);
    // A group of which one member is given up is still missed; one of which all are is not.
    expect(at, &["retire", "etc", "--confirm", "etc"], 0);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let look = ["watch", "--older-than", "1s", "--bound", "orders=1d"];
    assert!(expect(at, &look, 5).err.contains("ALARM: group shop"));
    expect(at, &["retire", "orders", "--confirm", "orders"], 0);
    expect(at, &look, 0);
    let status = expect(at, &["status"], 0);
    assert!(status.out.contains("Every source is retired"), "{}", status.all());
    assert!(status.out.contains("; all its members are retired"), "{}", status.all());
}
