//! Every row of every table of a copy is read, and so counted, and held against what was noted when the backup ended.

use anyhow::Result;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

use super::{Counted, Found, How, OF_USERS, Rows, is_before, newest_of, remark, wrong};
use crate::report::Check;
use crate::source::postgres::client::Client;

/// Tables named in a check.
const NAMED: usize = 5;
/// Tables and materialized views, those of the server itself too.
const LIST: &str = "select format('%I.%I', n.nspname, c.relname), n.nspname || '.' || c.relname \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'm') and c.relpersistence = 'p' and (c.relkind = 'r' or c.relispopulated) order by 1";

/// What was read so far.
pub struct Reading<'a> {
    counted: &'a Counted,
    count: u64,
    rows: u64,
    unreadable: Vec<String>,
    wrong: Vec<String>,
    pub remarks: Vec<String>,
}

impl Reading<'_> {
    /// `counted`: what the copy must have, if it was recovered to the end of the backup.
    pub fn new(counted: &Counted) -> Reading<'_> {
        let some = counted.left_out.iter().filter(|_| !counted.databases.is_empty());
        let remarks = some.map(|why| format!("not all tables were counted when the backup ended: {why}")).collect();
        Reading { counted, count: 0, rows: 0, unreadable: Vec::new(), wrong: Vec::new(), remarks }
    }

    /// Reads all tables of a database.
    pub fn read(&mut self, sql: &mut Client, database: &str, patience: Duration) -> Result<()> {
        sql.patience = patience;
        let then = self.counted.databases.get(database);
        let before = self.counted.before;
        let mut seen = BTreeSet::new();
        for row in &sql.rows(LIST)?.rows {
            let (table, name) = (row.required(0)?, row.required(1)?);
            let noted = then.and_then(|then| then.tables.get(name));
            seen.insert(name.to_owned());
            self.count += 1;
            match one(sql, table, noted, before) {
                Ok(found) => {
                    self.rows += found.rows;
                    let told = |what: String| format!("{name} in {database} {what}");
                    // What follows upon the colon is not for everybody who may read the repository.
                    let aside = |what: String| format!("a table is not as it was estimated: {}", told(what));
                    self.wrong.extend(noted.and_then(|then| wrong(then, &found)).map(told));
                    self.remarks.extend(noted.and_then(|then| remark(then, &found)).map(aside));
                }
                Err(e) => self.unreadable.push(format!("{table}: {e:#}")),
            }
        }
        let Some(then) = then else { return Ok(()) };
        for (name, rows) in then.tables.iter().filter(|(name, _)| !seen.contains(*name)) {
            self.wrong.push(format!("{name} in {database}, with some {} rows, is MISSING", rows.rows));
        }
        let here = format!("{OF_USERS} and {} and {}", is_before("c.xmin", before), is_before("n.xmin", before));
        let all = sql.value(&format!("select count(*) from {here}"))?.and_then(|n| n.parse().ok()).unwrap_or(0);
        if all < then.all {
            self.wrong.push(format!("{database} has {all} of its {} tables", then.all));
        }
        Ok(())
    }

    pub fn readable(&self) -> Check {
        let name = format!("{} tables with {} rows", self.count, self.rows);
        Check::compare(name, "all readable", told("all readable", &self.unreadable))
    }

    /// `None`: nothing was counted, and not said why. Databases that are not in the copy are missed by who asks for them by name.
    pub fn compared(&self) -> Option<Check> {
        let of = |how: How| self.counted.tables().filter(|rows| rows.how == how).count();
        let unread = self.counted.tables().filter(|rows| rows.how == How::Estimated && rows.kept == 0).count();
        let (exactly, counted, part) = (of(How::Exactly), of(How::Counted), of(How::Estimated) - unread);
        let mut name = "rows by table, as they were when the backup ended".to_owned();
        if exactly + counted + part > 0 || !self.wrong.is_empty() {
            name = format!("{name} ({exactly} tables exactly, {counted} what was there for certain, {part} a part");
            name += &if unread > 0 { format!(", {unread} by name only)") } else { ")".to_owned() };
            return Some(Check::compare(name, "all there", told("all there", &self.wrong)));
        }
        self.counted.left_out.as_ref().map(|why| Check::not_run(name, why))
    }
}

fn told(well: &str, wrong: &[String]) -> String {
    match wrong.len() {
        0 => well.to_owned(),
        n => format!("{n} are not: {}", wrong.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ")),
    }
}

fn one(sql: &mut Client, table: &str, noted: Option<&Rows>, before: u64) -> Result<Found> {
    let kept = is_before("t.xmin", before);
    let whole = noted.is_some_and(|then| then.how != How::Estimated);
    let column = noted.and_then(|then| then.newest.as_ref()).map(|(column, _)| column.as_str());
    let (filter, newest) = if whole { (kept.as_str(), newest_of(column, &kept)) } else { ("false", "null".to_owned()) };
    // The row as a whole: it takes values out of TOAST tables, too.
    let rows = sql.rows(&format!(
        "select count(*) + count(t.*) - count(t.*), count(*) filter (where {filter}), {newest} from only {table} t"
    ))?;
    let row = rows.one()?;
    let millis = row.text(2)?.and_then(|millis| millis.parse().ok());
    let newest = millis.and_then(|millis| Timestamp::from_millisecond(millis).ok());
    let mut found = Found { rows: row.parse(0)?, kept: row.parse(1)?, newest };
    if let Some(then) = noted.filter(|_| !whole) {
        let part = format!("select count(*) from (select from only {table} t where {kept} limit {}) part", then.kept);
        found.kept = sql.rows(&part)?.one()?.parse(0)?;
    }
    Ok(found)
}
