//! The agent's catalog: what ran, what was told, which alarms stand. A cache in SQLite: deleting it costs the history of failures and the
//! memory of notices sent, never data; what matters is read from the repository again.

use anyhow::{Context, Result};
use jiff::Timestamp;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};

use crate::durable;
use crate::job::Task;
use crate::notify::{Alarm, Notice};
use crate::repository::layout::SourceName;

/// Another number means another shape: the file is made anew.
const VERSION: i64 = 2;
/// Rows kept of runs and of notices.
const ROWS_MAX: i64 = 100_000;

const SHAPE: &str = "
    create table runs (id integer primary key, run text not null, source text not null, task text not null, started text not null,
        finished text not null, seconds real not null, result text not null, why text not null, report text not null,
        line text not null, help text);
    create index runs_by_task on runs (source, task, id);
    create table tasks (source text not null, task text not null, since text not null, primary key (source, task));
    create table notices (id integer primary key, at text not null, channel text not null, key text not null, phase text not null,
        delivered integer not null, error text);
    create table alarms (key text primary key, alarm text not null);
    create table held (id integer primary key, channel text not null, notice text not null);";
/// What came later, beside the rest.
const ADDED: &str =
    "create table if not exists untold (id integer primary key, channel text not null, notice text not null);";

pub struct Catalog {
    connection: Connection,
    path: PathBuf,
}

/// A run that has ended, as the catalog keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its id, which all its log lines carry.
    pub run: String,
    pub source: SourceName,
    pub task: Task,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub seconds: f64,
    /// `done`, `partial`, `missed`, `check-failed`, `environment`, `busy`, `failed`.
    pub result: String,
    /// Why it ran.
    pub why: String,
    /// The report of the operation, or its error, as JSON.
    pub report: String,
    /// How it ended, in one line for people.
    pub line: String,
    /// What to do next, where it failed.
    pub help: Option<String>,
}

impl Run {
    /// What `result` may be.
    pub const RESULTS: [&str; 7] = ["done", "partial", "missed", "check-failed", "environment", "busy", "failed"];

    /// Whether it did what it was to do.
    pub fn done(&self) -> bool {
        matches!(self.result.as_str(), "done" | "partial" | "missed" | "check-failed")
    }
}

impl Catalog {
    /// Opens the catalog in `state`, or makes it. One that cannot be read, or is of another version, is made anew; the second value says so.
    pub fn open(state: &Path) -> Result<(Catalog, Option<String>)> {
        durable::create_directories(state).with_context(|| format!("create {}", state.display()))?;
        let path = state.join("catalog.db");
        match Catalog::open_at(&path) {
            Ok(catalog) => Ok((catalog, None)),
            Err(error) => {
                for suffix in ["", "-wal", "-shm", "-journal"] {
                    let mut name = path.clone().into_os_string();
                    name.push(suffix);
                    durable::remove(Path::new(&name)).with_context(|| format!("remove {}", path.display()))?;
                }
                let catalog = Catalog::open_at(&path)?;
                Ok((catalog, Some(format!("the catalog {} was made anew: {error:#}", path.display()))))
            }
        }
    }

    fn open_at(path: &Path) -> Result<Catalog> {
        let connection = Connection::open(path).context("open the catalog")?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).context("set up the catalog")?;
        connection
            .execute_batch("pragma journal_mode = wal; pragma synchronous = normal;")
            .context("set up the catalog")?;
        let version: i64 =
            connection.query_row("pragma user_version", [], |row| row.get(0)).context("read the catalog")?;
        if version == 0 {
            connection
                .execute_batch(&format!("begin; {SHAPE} pragma user_version = {VERSION}; commit;"))
                .context("make the catalog")?;
        } else if version != VERSION {
            anyhow::bail!("it is of version {version}, and this program writes {VERSION}");
        }
        connection.execute_batch(ADDED).context("set up the catalog")?;
        let sound: String =
            connection.query_row("pragma quick_check(1)", [], |row| row.get(0)).context("check the catalog")?;
        anyhow::ensure!(sound == "ok", "it is damaged: {sound}");
        Ok(Catalog { connection, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When `task` of `source` was first seen; now, if it never was.
    pub fn since(&self, source: &SourceName, task: Task, now: Timestamp) -> Result<Timestamp> {
        self.connection
            .execute(
                "insert or ignore into tasks (source, task, since) values (?1, ?2, ?3)",
                params![source.as_str(), task.name(), now.to_string()],
            )
            .context("note a task")?;
        let text: String = self
            .connection
            .query_row(
                "select since from tasks where source = ?1 and task = ?2",
                params![source.as_str(), task.name()],
                |row| row.get(0),
            )
            .context("read a task")?;
        Ok(text.parse().unwrap_or(now))
    }

    pub fn record(&self, run: &Run) -> Result<()> {
        self.connection
            .execute(
                "insert into runs (run, source, task, started, finished, seconds, result, why, report, line, help)
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                params![
                    run.run,
                    run.source.as_str(),
                    run.task.name(),
                    run.started.to_string(),
                    run.finished.to_string(),
                    run.seconds,
                    run.result,
                    run.why,
                    run.report,
                    run.line,
                    run.help
                ],
            )
            .context("record a run")?;
        let forget = "delete from runs where id <= (select max(id) from runs) - ?1";
        self.connection.execute(forget, [ROWS_MAX]).context("forget old runs")?;
        Ok(())
    }

    /// The newest run of a task, and how many failed since the last that was done.
    pub fn last(&self, source: &SourceName, task: Task) -> Result<Option<(Run, u32)>> {
        let newest = "id = (select max(id) from runs where source = ?1 and task = ?2)";
        let Some(run) = self.runs(source, task, newest)?.pop() else { return Ok(None) };
        let failures: u32 = self
            .connection
            .query_row(
                "select count(*) from runs where source = ?1 and task = ?2 and id > coalesce((select max(id) from runs where source = ?1
                 and task = ?2 and result in ('done', 'partial', 'missed', 'check-failed')), 0)",
                params![source.as_str(), task.name()],
                |row| row.get(0),
            )
            .context("count failed runs")?;
        Ok(Some((run, failures)))
    }

    /// The newest run of a task, and the newest that could say how things stand; the oldest first.
    pub fn endings(&self, source: &SourceName, task: Task) -> Result<Vec<Run>> {
        let telling = "id >= coalesce((select min(id) from (select id from runs where source = ?1 and task = ?2
             and result in ('done', 'partial', 'missed', 'check-failed') order by id desc limit 20)), 0)
             and result in ('done', 'partial', 'missed', 'check-failed')
             or id = (select max(id) from runs where source = ?1 and task = ?2)";
        self.runs(source, task, telling)
    }

    /// Those runs of a task for which `condition` holds, the oldest first.
    fn runs(&self, source: &SourceName, task: Task, condition: &str) -> Result<Vec<Run>> {
        let query = format!(
            "select run, started, finished, result, why, report, line, seconds, help from runs
             where source = ?1 and task = ?2 and ({condition}) order by id"
        );
        let mut statement = self.connection.prepare(&query).context("read runs")?;
        let rows = statement.query_map(params![source.as_str(), task.name()], |row| {
            let time = |n| row.get::<_, String>(n).map(|text| text.parse::<Timestamp>().ok());
            let (started, finished) = (time(1)?, time(2)?);
            let run = Run {
                run: row.get(0)?,
                source: source.clone(),
                task,
                started: started.unwrap_or_default(),
                finished: finished.unwrap_or_default(),
                seconds: row.get(7)?,
                result: row.get(3)?,
                why: row.get(4)?,
                report: row.get(5)?,
                line: row.get(6)?,
                help: row.get(8)?,
            };
            Ok((started.is_some() && finished.is_some()).then_some(run))
        });
        let all: Vec<Option<Run>> = rows.and_then(Iterator::collect).context("read runs")?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Notes what became of a notice on a channel.
    pub fn told(&self, at: Timestamp, channel: &str, key: &str, phase: &str, error: Option<&str>) -> Result<()> {
        self.connection
            .execute(
                "insert into notices (at, channel, key, phase, delivered, error) values (?1, ?2, ?3, ?4, ?5, ?6)",
                params![at.to_string(), channel, key, phase, error.is_none(), error],
            )
            .context("record a notice")?;
        let forget = "delete from notices where id <= (select max(id) from notices) - ?1";
        self.connection.execute(forget, [ROWS_MAX]).context("forget old notices")?;
        Ok(())
    }

    /// The alarms that stand, so that a restart does not tell them again.
    pub fn alarms(&self) -> Result<Vec<Alarm>> {
        let mut statement = self.connection.prepare("select alarm from alarms").context("read the alarms")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).context("read the alarms")?;
        let texts: Vec<String> = rows.collect::<Result<_, _>>().context("read the alarms")?;
        Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// Notices that wait for the end of a channel's quiet hours.
    pub fn held(&self) -> Result<Vec<(String, Notice)>> {
        self.notices("held")
    }

    /// Notices that had not arrived.
    pub fn untold(&self) -> Result<Vec<(String, Notice)>> {
        self.notices("untold")
    }

    fn notices(&self, table: &str) -> Result<Vec<(String, Notice)>> {
        let read = || {
            let mut statement = self.connection.prepare(&format!("select channel, notice from {table} order by id"))?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            let all: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
            anyhow::Ok(all)
        };
        let all = read().context("read the notices that wait")?;
        Ok(all.into_iter().filter_map(|(channel, text)| Some((channel, serde_json::from_str(&text).ok()?))).collect())
    }

    /// The alarms that stand and the notices that wait or have not arrived: one without the other would tell something twice, or never.
    pub fn keep_alarms<'a>(
        &mut self,
        alarms: impl Iterator<Item = &'a Alarm>,
        held: &'a [(String, Notice)],
        untold: impl Iterator<Item = (&'a String, &'a Notice)>,
    ) -> Result<()> {
        let keep = |connection: &mut Connection| -> Result<()> {
            let transaction = connection.transaction()?;
            transaction.execute("delete from alarms", [])?;
            for alarm in alarms {
                let text = serde_json::to_string(alarm)?;
                transaction
                    .execute("insert into alarms (key, alarm) values (?1, ?2)", params![alarm.problem.key, text])?;
            }
            transaction.execute_batch("delete from held; delete from untold;")?;
            let held = held.iter().map(|(channel, notice)| ("held", channel, notice));
            for (table, channel, notice) in held.chain(untold.map(|(channel, notice)| ("untold", channel, notice))) {
                let text = serde_json::to_string(notice)?;
                let insert = format!("insert into {table} (channel, notice) values (?1, ?2)");
                transaction.execute(&insert, params![channel, text])?;
            }
            Ok(transaction.commit()?)
        };
        keep(&mut self.connection).context("keep the alarms")
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "test files need no durability")]
mod tests {
    use super::*;

    fn run(result: &str) -> Run {
        Run {
            run: "r".into(),
            source: SourceName::new("a").unwrap(),
            task: Task::Full,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            seconds: 0.5,
            result: result.into(),
            why: "w".into(),
            report: "{}".into(),
            line: "l".into(),
            help: Some("h".into()),
        }
    }

    #[test]
    fn failures_count_from_the_last_run_that_was_done() {
        let dir = tempfile::tempdir().unwrap();
        let source = SourceName::new("a").unwrap();
        let (catalog, anew) = Catalog::open(dir.path()).unwrap();
        assert!(anew.is_none() && catalog.last(&source, Task::Full).unwrap().is_none());
        for (result, failures) in [("failed", 1), ("failed", 2), ("done", 0), ("busy", 1), ("partial", 0)] {
            catalog.record(&run(result)).unwrap();
            assert_eq!(catalog.last(&source, Task::Full).unwrap(), Some((run(result), failures)), "{result}");
        }
        drop(catalog);
        let (catalog, anew) = Catalog::open(dir.path()).unwrap();
        assert!(anew.is_none());
        assert_eq!(catalog.last(&source, Task::Full).unwrap().unwrap().0.result, "partial");
        catalog.record(&run("busy")).unwrap();
        catalog.record(&run("failed")).unwrap();
        let endings = catalog.endings(&source, Task::Full).unwrap().into_iter().map(|run| run.result);
        assert_eq!(endings.collect::<Vec<_>>(), ["done", "partial", "failed"], "what tells, and the last");
    }

    #[test]
    fn a_damaged_catalog_is_made_anew_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        drop(Catalog::open(dir.path()).unwrap());
        std::fs::write(dir.path().join("catalog.db"), vec![7; 9000]).unwrap();
        let (catalog, anew) = Catalog::open(dir.path()).unwrap();
        assert!(anew.unwrap().contains("made anew"));
        catalog.record(&run("done")).unwrap();
    }
}
