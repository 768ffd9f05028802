//! Rules of the house that neither rustc nor clippy checks: layers, the size of files, where the program may print.
#![expect(clippy::unwrap_used, reason = "a test: a panic is the report")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The rows of the crate, lowest first. A file imports only from its own row or a lower one.
const ROWS: [(&str, &[&str]); 6] = [
    (
        "words",
        &["entry", "error", "fingerprint", "interrupt", "report", "clock", "limits", "progress", "size", "id", "time"],
    ),
    ("edges", &["storage", "source", "target", "bridge", "durable", "accounts", "audit", "child", "net", "secret"]),
    (
        "repository",
        &["age", "keys", "ssh", "layout", "snapshot", "index", "lease", "pipeline", "repository", "trust", "signed"],
    ),
    ("operations", &["operations"]),
    ("agent", &["agent", "config", "job", "plan", "scheduler", "catalog", "notify", "metrics", "status"]),
    ("shell", &["main", "lib", "cli", "commands"]),
];

/// Lines of a file of the program; aim at 150.
const LINES_MAX: usize = 400;
/// Lines of a file of tests: one theme may take more room, but not any.
const TEST_LINES_MAX: usize = 1000;

struct Source {
    /// Relative to the crate, `/` between components.
    name: String,
    text: String,
}

impl Source {
    /// `repository` for `src/repository/index/merge.rs`, `main` for `src/main.rs`; `None` outside `src`.
    fn module(&self) -> Option<&str> {
        let inside = self.name.strip_prefix("src/")?;
        Some(inside.split('/').next().unwrap().trim_end_matches(".rs"))
    }
}

fn sources() -> Vec<Source> {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches"].iter().map(|name| crate_root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(crate_root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { name, text: std::fs::read_to_string(&path).unwrap() });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.iter().any(|s| s.name == "src/lib.rs"), "found no sources to check");
    found
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|(_, modules)| modules.contains(&module))
}

/// The top-level modules of this crate that a text names: `crate::x…` and each of `crate::{x…, y…}`, with their lines.
fn imports(text: &str) -> Vec<(usize, String)> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        // `pub(in crate::x)` and macro names such as `$crate::` are imports as well; a longer word that ends in `crate` is not.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        found.extend(first_names(rest).into_iter().map(|name| (line, name)));
    }
    found
}

/// `a::b` gives `a`; `{a::{b, c}, d}` gives `a` and `d`.
fn first_names(path: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                names.push(word(&group[start..i]));
                start = i + 1;
            }
            '}' => {
                names.push(word(&group[start..i]));
                break;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Panics with all findings at once.
fn expect_none(rule: &str, findings: &[String]) {
    let mut text = String::new();
    for finding in findings {
        write!(text, "\n  {finding}").unwrap();
    }
    assert!(findings.is_empty(), "{rule}:{text}");
}

#[test]
fn every_module_imports_only_from_its_row_or_a_lower_one() {
    let mut findings = Vec::new();
    for source in sources() {
        let Some(module) = source.module() else { continue };
        let Some(own) = row(module) else {
            findings.push(format!("{}: module `{module}` is in no row; add it to ROWS", source.name));
            continue;
        };
        for (line, import) in imports(&source.text) {
            // What is in no row is an item of lib.rs, and so of the shell.
            let other = row(&import).unwrap_or(ROWS.len() - 1);
            if other > own {
                let (own, other) = (ROWS[own].0, ROWS[other].0);
                findings.push(format!("{}:{line}: {own} imports `{import}` of {other}", source.name));
            }
        }
    }
    expect_none("a file imports only from its own row or a lower one", &findings);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut findings = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let most = if source.module().is_some() { LINES_MAX } else { TEST_LINES_MAX };
        if lines > most {
            findings.push(format!("{}: {lines} lines, at most {most}", source.name));
        }
        if source.module().is_some() && !source.text.starts_with("//! ") {
            findings.push(format!("{}: the first line must be `//! …`", source.name));
        }
    }
    expect_none("files are short, and the first line says what they are", &findings);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["TODO", "FIXME", "XXX", "HACK"].map(|mark| (mark, format!("{mark}:"), format!("// {mark}")));
    let mut findings = Vec::new();
    for source in sources().iter().filter(|s| s.name != "tests/tidy.rs") {
        for (number, line) in source.text.lines().enumerate() {
            for (mark, colon, comment) in &marks {
                if line.contains(colon) || line.contains(comment) {
                    findings.push(format!("{}:{}: {mark}", source.name, number + 1));
                }
            }
        }
    }
    expect_none("do it, or write an issue", &findings);
}

#[test]
fn only_the_shell_prints() {
    let mut findings = Vec::new();
    for source in sources() {
        let shell = source.name == "src/main.rs" || source.module() == Some("commands");
        if source.module().is_none() || shell {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for name in ["println!", "eprintln!", "print!", "eprint!", "dbg!"] {
                if code
                    .match_indices(name)
                    .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
                {
                    findings.push(format!("{}:{}: {name}", source.name, number + 1));
                }
            }
        }
    }
    expect_none("operations return reports; src/commands and src/main.rs print them", &findings);
}

#[test]
fn imports_are_found() {
    let text = "use crate::a::b;\nuse crate::{c::{d, e}, f};\n// crate::no\nlet x = crate::g::h();\nmycrate::no;";
    let found: Vec<(usize, String)> = imports(text);
    let expected = [(1, "a"), (2, "c"), (2, "f"), (4, "g")].map(|(line, name)| (line, name.to_owned()));
    assert_eq!(found, expected);
}
