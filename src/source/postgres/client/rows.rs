//! Rows of a simple query: text, or raw bytes where the command sends them.

use anyhow::{Context, Result, ensure};

/// One set of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// One row: a value for each column, `None` for NULL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row(pub Vec<Option<Vec<u8>>>);

impl Rows {
    /// The only row.
    pub fn one(&self) -> Result<&Row> {
        ensure!(self.rows.len() == 1, "one row was expected, and {} came", self.rows.len());
        self.rows.first().context("no row came")
    }
}

impl Row {
    pub fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.0.get(column)?.as_deref()
    }

    pub fn text(&self, column: usize) -> Result<Option<&str>> {
        let text = self.bytes(column).map(std::str::from_utf8).transpose();
        text.with_context(|| format!("column {column} is not UTF-8"))
    }

    /// A text that must be there.
    pub fn required(&self, column: usize) -> Result<&str> {
        self.text(column)?.with_context(|| format!("column {column} is NULL or missing"))
    }

    /// A number, or whatever reads itself from text, that must be there.
    pub fn parse<T: std::str::FromStr>(&self, column: usize) -> Result<T> {
        let text = self.required(column)?;
        text.parse().ok().with_context(|| format!("column {column} has the unexpected value {text:?}"))
    }
}

/// `text` as a literal of SQL and of the replication commands: `'it''s'`.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The names in a `RowDescription`.
pub(super) fn columns(body: &[u8]) -> Result<Vec<String>> {
    let (count, mut rest) = count(body)?;
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let end = rest.iter().position(|b| *b == 0).context("a description of columns is cut short")?;
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        // Table, column, type, its size, its modifier, format.
        rest = rest.get(end + 19..).context("a description of columns is cut short")?;
    }
    Ok(names)
}

/// The values in a `DataRow`.
pub(super) fn row(body: &[u8]) -> Result<Row> {
    let (count, mut rest) = count(body)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<4>().context("a row is cut short")?;
        rest = after;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            continue;
        };
        let (value, after) = rest.split_at_checked(length).context("a row is cut short")?;
        values.push(Some(value.to_vec()));
        rest = after;
    }
    Ok(Row(values))
}

fn count(body: &[u8]) -> Result<(usize, &[u8])> {
    let (count, rest) = body.split_first_chunk::<2>().context("a message is cut short")?;
    Ok((usize::from(u16::from_be_bytes(*count)), rest))
}
