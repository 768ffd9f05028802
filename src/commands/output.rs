//! The only code that prints: lines for people, one JSON document for programs.

use anyhow::{Context, Error};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::help::help_of;
use crate::clock::Clock;
use crate::error::{self, Kind};
use crate::progress::Progress;
use crate::report::Check;
pub use crate::size::in_words as size;
pub use crate::time::local as time;

/// Between two looks at how far an operation has come.
const TICK: Duration = Duration::from_millis(120);

/// How a verb ended, from the best to the worst. DESIGN §7 has the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    Done,
    NothingToDo,
    Missed,
    Partial,
    CheckFailed,
    Failed(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Partial => 3,
            Exit::CheckFailed => 4,
            Exit::Missed => 5,
            Exit::NothingToDo => 6,
            Exit::Failed(code) => code,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Partial => "partial",
            Exit::CheckFailed => "check-failed",
            Exit::Missed => "missed",
            Exit::NothingToDo => "nothing-to-do",
            Exit::Failed(_) => "failed",
        }
    }
}

/// What a verb hands back: the exit, and the report for `--json`.
pub struct Ending {
    pub exit: Exit,
    report: Value,
}

impl Ending {
    pub fn new(exit: Exit, report: impl Serialize) -> anyhow::Result<Ending> {
        Ok(Ending { exit, report: serde_json::to_value(report)? })
    }
}

/// Where the verbs speak, and the clock that they hand to operations.
pub struct Shell {
    pub json: bool,
    pub quiet: bool,
    pub config: Option<PathBuf>,
    pub clock: Arc<dyn Clock>,
}

/// Ends when it is dropped, and leaves nothing on the screen.
pub struct Busy {
    bar: ProgressBar,
    stop: Option<Sender<()>>,
    drawer: Option<JoinHandle<()>>,
}

impl Busy {
    fn hidden() -> Busy {
        Busy { bar: ProgressBar::hidden(), stop: None, drawer: None }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(drawer) = self.drawer.take() {
            // It only draws.
            drop(drawer.join());
        }
        self.bar.finish_and_clear();
    }
}

/// A bar once it is known how much there is to do; the bytes done until then.
fn draw(bar: &ProgressBar, progress: &Progress) {
    let done = progress.done();
    // A guess that was too low is none any more.
    if let Some(expected) = progress.expected().filter(|expected| done <= *expected) {
        bar.set_length(expected);
        set_style(bar, "{spinner} {msg} [{bar:24}] {bytes} of {total_bytes} {binary_bytes_per_sec} {elapsed}");
    } else if done > 0 {
        set_style(bar, "{spinner} {msg} {bytes} {binary_bytes_per_sec} {elapsed}");
    }
    bar.set_position(done);
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

impl Shell {
    /// A line for people on stdout.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            put(&mut std::io::stdout().lock(), text.as_ref());
        }
    }

    /// A line on stderr, in every mode: what the person at the keyboard must not miss.
    pub fn warn(&self, text: impl AsRef<str>) {
        put(&mut std::io::stderr().lock(), &format!("warning: {}", text.as_ref()));
    }

    /// An error after which the verb goes on with the next source.
    pub fn complain(&self, error: &Error) {
        if !self.json {
            put(&mut std::io::stderr().lock(), &error_text(error));
        }
    }

    /// Shows on a terminal that something goes on, how far it is and for how long, until the result is dropped.
    pub fn busy(&self, text: String, progress: &Progress) -> Busy {
        if self.json || self.quiet {
            return Busy::hidden();
        }
        // On stderr; indicatif draws nothing where that is no terminal.
        let bar = ProgressBar::new_spinner().with_message(text);
        if bar.is_hidden() {
            return Busy::hidden();
        }
        set_style(&bar, "{spinner} {msg} {elapsed}");
        bar.enable_steady_tick(TICK);
        let (stop, stopped) = channel::<()>();
        let (drawn, progress) = (bar.clone(), progress.clone());
        let draw = move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                draw(&drawn, &progress);
            }
        };
        // Without the thread there is a spinner only.
        let drawer = std::thread::Builder::new().name("progress".into()).spawn(draw).ok();
        Busy { bar, stop: Some(stop), drawer }
    }

    /// Prints how `verb` ended, and gives the exit code.
    pub fn finish(&self, verb: &str, result: anyhow::Result<Ending>) -> u8 {
        match result {
            Ok(ending) => {
                if self.json {
                    print_json(
                        &json!({"version": 1, "verb": verb, "outcome": ending.exit.name(), "report": ending.report}),
                    );
                }
                ending.exit.code()
            }
            Err(error) => {
                if self.json {
                    print_json(&json!({"version": 1, "verb": verb, "error": error_value(&error)}));
                } else {
                    put(&mut std::io::stderr().lock(), &error_text(&error));
                }
                error::kind_of(&error).exit_code()
            }
        }
    }
}

/// How a verb ended, in a word.
pub fn outcome(result: &anyhow::Result<Ending>) -> &'static str {
    result.as_ref().map_or_else(|error| kind_name(error::kind_of(error)), |ending| ending.exit.name())
}

/// A reader that went away (`| head`) is no failure of the backup.
fn put(to: &mut impl Write, text: &str) {
    drop(writeln!(to, "{text}"));
}

/// A store keeps this verb waiting; on stderr, in every mode.
pub fn still_waiting(text: &str) {
    put(&mut std::io::stderr().lock(), &format!("warning: {text}"));
}

/// Whether the person means `name`: by what the command line confirms, otherwise by what is typed at a terminal after `question`.
pub fn confirmed(name: &str, given: Option<&str>, question: &str) -> anyhow::Result<bool> {
    if let Some(given) = given {
        return Ok(given == name);
    }
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut out = std::io::stderr().lock();
    drop(write!(out, "{question}: "));
    drop(out.flush());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("read the answer")?;
    Ok(line.trim() == name)
}

pub fn print_json(value: &Value) {
    put(&mut std::io::stdout().lock(), &value.to_string());
}

/// Text as it is: help, version and usage errors come whole from clap.
pub fn print_raw(text: &str, on_stderr: bool) {
    if on_stderr { put(&mut std::io::stderr().lock(), text) } else { put(&mut std::io::stdout().lock(), text) }
}

fn error_text(error: &Error) -> String {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  because: {cause}"));
    }
    if let Some(help) = help_of(error) {
        text.push_str(&format!("\nhelp: {help}"));
    }
    text
}

/// An error as a part of a JSON document.
pub fn error_value(error: &Error) -> Value {
    json!({"kind": kind_name(error::kind_of(error)), "message": format!("{error:#}"), "help": help_of(error)})
}

pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Failed => "failed",
        Kind::CheckFailed => "check-failed",
        Kind::Environment => "environment",
        Kind::NoRepository => "no-repository",
        Kind::Busy => "busy",
        Kind::WrongKey => "wrong-key",
        Kind::Usage => "usage",
        Kind::Config => "config",
        Kind::Interrupted => "interrupted",
    }
}

/// Rows as aligned columns under a heading; no spaces at the ends of lines.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|h| h.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(heading)];
    lines.extend(rows.iter().map(|row| line(std::array::from_fn(|i| row[i].as_str()))));
    lines.join("\n")
}

/// How a check came out, in a line.
pub fn check_line(check: &Check) -> String {
    let Check { name, expected, actual, passed } = check;
    match (check.was_run(), passed) {
        (false, _) => format!("not run {name}: {actual}"),
        (true, true) => format!("ok      {name}: {actual}"),
        (true, false) => format!("FAILED  {name}: expected {expected}, found: {actual}"),
    }
}

/// `1 snapshot`, `2 snapshots`.
pub fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `1, 2, 5`.
pub fn numbers(all: &[u64]) -> String {
    all.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// Seconds for people.
pub fn span(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 999_960, 16_790_112].map(size), ["0 B", "999 B", "1.0 kB", "1.0 MB", "16.8 MB"]);
        assert_eq!([0.5, 60.0, 600.0, 7200.0, 864_000.0].map(span), ["0.50 s", "60 s", "10 min", "2.0 h", "10.0 d"]);
    }

    #[test]
    fn a_check_that_was_not_run_is_not_called_well() {
        assert_eq!(check_line(&Check::compare("rows", 3, 3)), "ok      rows: 3");
        assert_eq!(check_line(&Check::compare("rows", 3, 2)), "FAILED  rows: expected 3, found: 2");
        assert_eq!(check_line(&Check::not_run("chromadb", "no Python has it")), "not run chromadb: no Python has it");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["orders".to_owned(), "1".to_owned()], ["a".to_owned(), String::new()]];
        assert_eq!(table(["SOURCE", "N"], &rows), "SOURCE  N\norders  1\na");
    }
}
