//! Rows when a backup has ended. Small tables are counted; of large ones a part is, and the server's statistics say the rest. It waits for nobody: no
//! lock that somebody holds, and nothing that takes long.

use anyhow::Result;
use std::time::{Duration, Instant};

use super::{Counted, Horizon, How, OF_USERS, Rows, TABLES_MAX, Tables, is_before, newest_of};
use crate::source::postgres::client::{Address, Client, Session};
use jiff::Timestamp;

/// All of it, one table, and a connection.
const IN_ALL: Duration = Duration::from_secs(15);
const ONE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(5);
/// How long to wait for those who were writing when the backup ended.
const SETTLE: Duration = Duration::from_secs(2);
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
const DATABASES_MAX: usize = 50;
/// Of tables of more bytes only so many rows are looked at.
const BYTES_MAX: u64 = 32 << 20;
const PART: u64 = 20_000;

/// Counts what can be counted soon. It never fails: what is not known is left out, and why.
pub fn count(address: &Address, databases: &[String], horizon: Result<Horizon, String>) -> Counted {
    let horizon = match horizon {
        Ok(horizon) => horizon.xid,
        Err(why) => return Counted::nothing(why),
    };
    let mut counted = Counted { before: horizon, ..Counted::default() };
    let until = Instant::now() + IN_ALL;
    let mut counting = Counting { horizon, settled: None, room: TABLES_MAX, until, forbidden: Vec::new(), version: 0 };
    for (n, database) in databases.iter().enumerate() {
        if n == DATABASES_MAX || Instant::now() >= counting.until {
            let rest = databases.len() - n;
            counted.left_out.get_or_insert_with(|| format!("{rest} databases, from {database} on: too much to count"));
            break;
        }
        let address = Address { database: Some(database.clone()), connect: CONNECT, ..address.clone() };
        match counting.database(&address) {
            Ok(tables) if tables.all > 0 => drop(counted.databases.insert(database.clone(), tables)),
            Ok(_) => {}
            Err(e) => drop(counted.left_out.get_or_insert_with(|| format!("{database}: {e:#}"))),
        }
    }
    if let Some(first) = counting.forbidden.first() {
        let (user, tables) = (&address.user, counting.forbidden.len());
        let grant = match counting.version >= 140_000 {
            true => format!("grant pg_read_all_data to {user}"),
            false => format!("grant select on all tables in schema … to {user}"),
        };
        let why = format!("{user} may not read {first}, one of {tables}: {grant}");
        counted.left_out.get_or_insert(why);
    }
    counted
}

struct Counting {
    horizon: u64,
    /// Whether all have ended that may have been writing when the backup ended.
    settled: Option<bool>,
    /// For so many more tables.
    room: usize,
    until: Instant,
    /// Tables that the role may not read.
    forbidden: Vec<String>,
    /// Of the server.
    version: u32,
}

impl Counting {
    fn database(&mut self, address: &Address) -> Result<Tables> {
        let mut sql = Client::connect(address, Session::Plain)?;
        sql.patience = CONNECT;
        self.version = sql.version();
        // Rows that a policy would hide are an error and not a lower count.
        sql.query(
            "set lock_timeout = '100ms'; set max_parallel_workers_per_gather = 0; set row_security = off; set search_path = ''",
        )?;
        sql.query(&format!("set statement_timeout = {}", CONNECT.as_millis()))?;
        let settled = match self.settled {
            Some(settled) => settled,
            None => *self.settled.insert(settle(&mut sql, self.horizon, self.until)?),
        };
        sql.query("begin isolation level repeatable read, read only")?;
        // The first question fixes what is seen: what is counted below is of this moment.
        let quiet = began_since(&mut sql, self.horizon)? == 0;
        let here =
            format!("{OF_USERS} and {} and {}", is_before("c.xmin", self.horizon), is_before("n.xmin", self.horizon));
        let all = sql.value(&format!("select count(*) from {here}"))?.and_then(|n| n.parse().ok()).unwrap_or(0);
        let list = sql.rows(&format!("{LIST} from {here} order by 4 desc, 3 desc, 1 limit {}", self.room))?;
        sql.query(&format!("set local statement_timeout = {}", ONE.as_millis()))?;
        let mut tables = Tables { all, ..Tables::default() };
        let kept = match settled {
            true => is_before("t.xmin", self.horizon),
            false => format!("{} and t.xmax::text = '0'", is_before("t.xmin", self.horizon)),
        };
        for row in &list.rows {
            let (name, table) = (row.required(0)?, row.required(1)?);
            let (estimate, bytes): (u64, u64) = (row.parse(2)?, row.parse(3)?);
            let column = row.text(4)?;
            let mut rows = None;
            let may = row.required(5)? == "t";
            if !may {
                self.forbidden.push(format!("{name} in {}", address.database.as_deref().unwrap_or_default()));
            }
            if may && bytes <= BYTES_MAX && Instant::now() < self.until {
                rows = whole(&mut sql, table, &kept, column)?;
            }
            if let Some(rows) = &mut rows {
                rows.how = if quiet { How::Exactly } else { How::Counted };
            } else if may && Instant::now() < self.until {
                rows = part(&mut sql, table, &kept, estimate)?;
            }
            let rows = rows.unwrap_or(Rows { rows: estimate, how: How::Estimated, kept: 0, newest: None });
            tables.tables.insert(name.to_owned(), rows);
        }
        sql.query("commit")?;
        // TRUNCATE shows even to those who began to look before it.
        if began_since(&mut sql, self.horizon)? > 0 {
            let exactly = tables.tables.values_mut().filter(|rows| rows.how == How::Exactly);
            exactly.for_each(|rows| rows.how = How::Counted);
        }
        self.room -= tables.tables.len().min(self.room);
        Ok(tables)
    }
}

/// Name; quoted; estimate: `n_live_tup` counts what was written since the statistics began, where they are new what the last ANALYZE found is better;
/// bytes; a column that tells when a row was written; whether it may be read.
const LIST: &str = "select n.nspname || '.' || c.relname, format('%I.%I', n.nspname, c.relname), \
    coalesce((select case when s.n_live_tup + s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0 then s.n_live_tup end \
      from pg_stat_all_tables s where s.relid = c.oid), greatest(c.reltuples, 0))::bigint, \
    c.relpages::bigint * current_setting('block_size')::bigint, \
    (select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.atttypid in (1114, 1184) \
     and a.attname ~* '^(updated|modified|changed|written|created|inserted|recorded|logged|received|occurred|happened)(_?(at|on|time|ts|date))?$|^(at|ts|time|timestamp|mtime)$' \
     order by a.attname !~* '^(updated|modified|changed|written|mtime)', a.attnum limit 1), \
    has_table_privilege(c.oid, 'select') and has_schema_privilege(n.oid, 'usage')";

/// Transactions that have been given a number since the horizon.
fn began_since(sql: &mut Client, horizon: u64) -> Result<u64> {
    // `age` counts from the number that the next transaction will have; a snapshot knows only of those that have ended.
    let age = sql.rows(&format!("select age('{}'::xid), pg_current_snapshot()::text", horizon & 0xffff_ffff))?;
    Ok(age.one()?.parse::<i64>(0)?.max(0).unsigned_abs())
}

/// Waits for those who may have been writing when the backup ended. Whoever begins later deletes nothing that the backup does not have.
fn settle(sql: &mut Client, horizon: u64, until: Instant) -> Result<bool> {
    let next = horizon + began_since(sql, horizon)?;
    let begun = Instant::now();
    loop {
        let oldest = sql.rows("select pg_snapshot_xmin(pg_current_snapshot())::text")?.one()?.parse::<u64>(0)?;
        if oldest >= next {
            return Ok(true);
        }
        if begun.elapsed() > SETTLE || Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(SETTLE_PAUSE);
    }
}

/// `None`: it may not be read, somebody holds it, or it takes too long. An `Err`: the connection has ended.
fn attempt(sql: &mut Client, query: &str) -> Result<Option<crate::source::postgres::client::Row>> {
    sql.query("savepoint one")?;
    let answer = sql.rows(query).ok().and_then(|rows| rows.one().ok().cloned());
    sql.query(if answer.is_some() { "release one" } else { "rollback to one" })?;
    Ok(answer)
}

fn whole(sql: &mut Client, table: &str, kept: &str, column: Option<&str>) -> Result<Option<Rows>> {
    let newest = newest_of(column, kept);
    let query = format!("select count(*), count(*) filter (where {kept}), {newest} from only {table} t");
    let Some(row) = attempt(sql, &query)? else { return Ok(None) };
    let millis = row.text(2)?.and_then(|millis| millis.parse().ok());
    let newest = millis.and_then(|millis| Timestamp::from_millisecond(millis).ok());
    let newest = column.map(str::to_owned).zip(newest);
    Ok(Some(Rows { rows: row.parse(0)?, how: How::Counted, kept: row.parse(1)?, newest }))
}

fn part(sql: &mut Client, table: &str, kept: &str, estimate: u64) -> Result<Option<Rows>> {
    let query = format!("select count(*) from (select from only {table} t where {kept} limit {PART}) part");
    let Some(row) = attempt(sql, &query)? else { return Ok(None) };
    let kept: u64 = row.parse(0)?;
    Ok(Some(Rows { rows: estimate.max(kept), how: How::Estimated, kept, newest: None }))
}
