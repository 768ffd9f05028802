//! Forward compaction: however often parts are overwritten, a restore never fetches much more than it restores, and old packs die.

use super::world::{World, name};
use blackstart::bridge::Store;
use blackstart::operations::backup::Options;
use blackstart::operations::basis::{amplification, survey};
use blackstart::operations::restore::{self, Pick};
use blackstart::operations::retention::Policy;
use blackstart::operations::{prune, verify};
use blackstart::repository::sealed::SealedPart;
use blackstart::storage::memory::Memory;
use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::sync::Arc;

#[test]
fn partial_overwrites_keep_the_amplification_bounded_and_let_old_packs_die() {
    let world = World::on(Store::new(Arc::new(Memory::default())).unwrap(), tempfile::tempdir().unwrap());
    let db = rusqlite::Connection::open(world.path("app.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4000) INSERT INTO t SELECT i, randomblob(500) FROM n",
    )
    .unwrap();
    world.backup_sqlite(&world.path("app.db"), Options::default()).unwrap();
    let packs = || -> BTreeSet<String> {
        world.host.open.store.list("packs/").unwrap().into_iter().map(|o| o.key.to_string()).collect()
    };
    let first = packs();
    let identities = [world.host.keys.identity.clone()];
    for round in 0..40 {
        let at = round * 397 % 4000;
        db.execute("UPDATE t SET body=randomblob(500) WHERE id >= ?1 AND id < ?1 + 300", [at]).unwrap();
        world.backup_sqlite(&world.path("app.db"), Options::default()).unwrap();
        let (_, snapshot) = restore::find(&world.host.open, &name("db"), &Pick::Latest).unwrap();
        assert!(snapshot.layers.len() <= 16);
        let sealed = SealedPart::open(&snapshot, &identities).unwrap();
        let found = survey(&world.host.open, &snapshot, &sealed, &identities, false, false).unwrap();
        let factor = amplification(found.basis.packs.values());
        assert!(factor <= 1.6, "round {round}: a restore fetches {factor:.2} times what it needs");
        if round % 10 == 9 {
            let policy = Policy { last: 1, ..Policy::default() };
            let plan = prune::plan(&world.host.open, &name("db"), &policy, SignedDuration::ZERO).unwrap();
            prune::sweep(&world.host, plan).unwrap();
        }
    }
    assert!(packs().is_disjoint(&first), "packs of the first run are still there");
    let report =
        verify::verify(&world.host.open, None, &verify::Options { hashes: true, ..verify::Options::default() })
            .unwrap();
    assert!(report.sound(), "{report:?}");
    assert!(world.drill("db").unwrap().passed);
}
