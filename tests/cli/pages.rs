//! The configuration that README.md and docs/ show is taken as it stands there: a key that was renamed shows here, not at an operator's.

use super::support::binary::run;
use std::fs;
use std::path::Path;

const BEGIN: &str = "repository = \"/mnt/backups\"\n";
/// A source of each name that the pages speak of.
const SOURCES: [&str; 6] = ["app", "orders", "cache", "vectors", "etc", "shop"];

/// The blocks of TOML in a page.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn source(name: &str, kind: &str, rest: &str) -> String {
    let place = if kind == "postgres" { "url = \"postgres://backup@/?host=/run\"" } else { "path = \"/srv\"" };
    format!("\n[[source]]\nname = \"{name}\"\nkind = \"{kind}\"\n{place}\n{rest}")
}

/// Everything that a block leaves out, around it: the configuration, a job file and a plan.
fn whole(block: &str) -> (String, Option<String>, Option<String>) {
    let first = block.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
    let others =
        |text: &str| {
            SOURCES
                .map(|name| {
                    if text.contains(&format!("name = \"{name}\"")) { String::new() } else { source(name, "files", "") }
                })
                .concat()
        };
    match first.split([' ', '.', ']']).next().unwrap_or_default() {
        "repository" => (block.to_owned(), None, None),
        "[source" if block.contains("storage_class") => {
            (format!("{}s3://bucket/p\"\n{}", &BEGIN[..14], source("tiered", "files", block)), None, None)
        }
        "[source" => (format!("{BEGIN}{}", source("server", "postgres", block)), None, None),
        "check" => {
            let text = block.replace("${copy.app}", "/srv");
            (format!("{BEGIN}{}", others("")), None, Some(format!("[[stage]]\nname = \"look\"\n{text}")))
        }
        "[[drill" => (format!("{BEGIN}{}", others("")), Some(format!("source = \"app\"\n{block}")), None),
        "group" => {
            let group = "name = \"shop\"\nsources = [\"app\", \"etc\"]\n";
            (format!("{BEGIN}{}[[group]]\n{group}", others(group)), Some(block.to_owned()), None)
        }
        "source" => (format!("{BEGIN}{}", others("")), Some(block.to_owned()), None),
        "plan" => {
            let plan = "[[stage]]\nname = \"s\"\nrestore = { source = \"app\", to = \"/srv/app\" }\n";
            (format!("{BEGIN}{}", others("")), Some(block.to_owned()), Some(plan.to_owned()))
        }
        _ => (format!("{BEGIN}{block}{}", others(block)), None, None),
    }
}

#[test]
fn the_configuration_in_the_pages_is_taken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    pages.extend(
        fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()),
    );
    let mut tried = 0;
    for page in pages {
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            let home = tempfile::tempdir().unwrap();
            let (config, job, plan) = whole(block);
            let at = home.path();
            fs::write(at.join("blackstart.toml"), &config).unwrap();
            for (folder, text) in [("schedules", job), ("restore-plans", plan)] {
                fs::create_dir(at.join(folder)).unwrap();
                if let Some(text) = text {
                    fs::write(at.join(folder).join("disaster.toml"), text).unwrap();
                }
            }
            // It reads all of the configuration, and opens nothing; 6 is for one that tells nobody.
            let ran = run(at, &["notify"]);
            assert!(
                [0, 6].contains(&ran.code),
                "expected this block of {} to be taken: {}\n{block}\n{config}",
                page.display(),
                ran.err
            );
            tried += 1;
        }
    }
    assert!(tried > 10, "expected to find the blocks of the pages, found {tried}");
}
