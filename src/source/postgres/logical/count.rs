//! Rows by table, counted in the very snapshot that `pg_dump` reads, while it reads.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::catalog;
use super::selection::Selection;
use crate::source::postgres::client::Client;
use crate::source::postgres::programs::identifier;

/// Tables of one database that are counted; of more, the first.
const TABLES_MAX: usize = 10_000;
/// How long one count may take.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

pub(super) type Counts = BTreeMap<String, Option<u64>>;

/// A transaction that holds a snapshot open, and counts in it. Dropped before [`Counter::finish`], it gives up.
pub(super) struct Counter {
    /// For `pg_dump --snapshot`.
    pub snapshot: String,
    dumped: Sender<()>,
    counting: JoinHandle<Result<Counts>>,
}

impl Counter {
    /// Takes over `client`, inside the transaction of [`begin`].
    pub fn start(mut client: Client, snapshot: String, selection: &Selection) -> Counter {
        let (dumped, has_dumped) = channel();
        let selection = selection.clone();
        client.patience = PATIENCE;
        let counting = std::thread::spawn(move || count(&mut client, &selection, &has_dumped));
        Counter { snapshot, dumped, counting }
    }

    /// After the dump has ended: waits for what is not counted yet.
    pub fn finish(self) -> Result<Counts> {
        // A thread that has ended by itself has an error to tell.
        let _ended = self.dumped.send(());
        self.counting.join().ok().context("count rows")?.context("count rows")
    }
}

/// Begins a transaction whose snapshot others can use; gives its name.
pub(super) fn begin(client: &mut Client) -> Result<String> {
    client.query("set idle_in_transaction_session_timeout = 0; set statement_timeout = 0; set row_security = off; set extra_float_digits = 0")?;
    client.query("begin isolation level repeatable read, read only")?;
    client.value("select pg_export_snapshot()")?.context("export a snapshot")
}

/// A count that fails (its table was dropped meanwhile) is `None`. The transaction goes on until the dump has ended, because `pg_dump` may not
/// have taken the snapshot over before.
fn count(client: &mut Client, selection: &Selection, has_dumped: &Receiver<()>) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut waits = true;
    for (schema, table) in catalog::tables(client, selection)?.into_iter().take(TABLES_MAX) {
        match has_dumped.try_recv() {
            Ok(()) => waits = false,
            Err(TryRecvError::Disconnected) if waits => bail!("the dump was given up"),
            Err(_) => {}
        }
        client.query("savepoint one")?;
        let sql = format!("select count(*) from only {}.{}", identifier(&schema), identifier(&table));
        let rows = client.value(&sql).ok().flatten().and_then(|rows| rows.parse().ok());
        if rows.is_none() {
            client.query("rollback to one")?;
        }
        client.query("release one")?;
        counts.insert(format!("{schema}.{table}"), rows);
    }
    if waits {
        has_dumped.recv().context("the dump was given up")?;
    }
    Ok(counts)
}
