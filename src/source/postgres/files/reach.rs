//! Whether this process stands beside the server: may call its backup functions, and reads the very directory that it runs on.

use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;

use super::control;
use crate::source::postgres::client::{Address, Client, Session};
use crate::source::postgres::outside;
use crate::source::postgres::server::Facts;

/// A session with a server whose files can be read.
pub struct Reach {
    pub session: Client,
    pub data: PathBuf,
    pub facts: Facts,
    /// Paths of the configuration outside the data directory.
    pub config: Vec<String>,
}

impl Reach {
    /// An `Err` says what is lacking, and which grant would cure it.
    pub fn find(address: &Address) -> Result<Reach> {
        ensure!(address.is_local(), "the server is on another machine");
        let mut session = Client::connect(address, Session::Plain)?;
        let user = &address.user;
        let (start, stop) = if session.version() >= 150_000 {
            ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
        } else {
            ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")
        };
        let data = session.value("select setting from pg_settings where name = 'data_directory'")?;
        let may = |function: &str| format!("has_function_privilege('{function}', 'execute')");
        let may = session.value(&format!("select {} and {}", may(start), may(stop)))?;
        let lacks = [
            (may.as_deref() != Some("t"), "begin and end a backup", format!("execute on function {start}, {stop}")),
            (data.is_none(), "see where the data is", "pg_read_all_settings".to_owned()),
        ];
        let lacks: Vec<_> = lacks.into_iter().filter(|(lacks, ..)| *lacks).collect();
        if !lacks.is_empty() {
            let what: Vec<&str> = lacks.iter().map(|(_, what, _)| *what).collect();
            let grants: Vec<String> = lacks.iter().map(|(.., grant)| format!("grant {grant} to {user};")).collect();
            bail!("{user} may not {} ({})", what.join(" and "), grants.join(" "));
        }
        let data = PathBuf::from(data.unwrap_or_default());
        let control = control::read(&data).with_context(|| {
            format!("this process cannot read {} (run as root, or as the server's user)", data.display())
        })?;
        let facts = Facts::ask_by_sql(&mut session, address)?;
        let same = control::system_identifier(&control).is_some_and(|id| id.to_string() == facts.system);
        let started = session.value("select extract(epoch from pg_postmaster_start_time())::bigint")?;
        let runs_here = started.and_then(|s| s.parse().ok()).is_some_and(|s: i64| control::runs_here(&data, s));
        ensure!(same && runs_here, "the server that answers does not run on the {} of this machine", data.display());
        let config = outside::paths(&mut session)?;
        Ok(Reach { session, data, facts, config })
    }
}
