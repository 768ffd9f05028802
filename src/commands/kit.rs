//! `kit`: the break-glass folder, for the day when this machine is gone.

use anyhow::{Context, Result};
use serde_json::json;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::output::{Ending, Exit, Shell, time};
use super::policies::{self, Own, Place};
use super::setup::{RECOVER, RECOVER_LOG};
use crate::cli::Kit;
use crate::config::Config;
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::plan;
use crate::repository::keys::KeyFile;
use crate::repository::layout::{Hash, SourceName};
use crate::repository::series;
use crate::storage::location::{self, Location};

/// Characters of a managed policy, white space aside: "IAM and AWS STS quotas" in the IAM User Guide.
const MANAGED_MAX: usize = 6144;

pub fn run(shell: &Shell, args: &Kit) -> Result<Ending> {
    let config = shell.config()?;
    let open = shell.open(&config)?;
    let key = match &args.identity {
        Some(path) => {
            let keys = KeyFile::read(path)?;
            super::open::KeyCanary::fly(&open, &keys.identities)
                .context("the key does not belong to this repository")?;
            Some(zeroize::Zeroizing::new(std::fs::read(path).with_context(|| format!("read {}", path.display()))?))
        }
        None => None,
    };
    let scripts = [("recover.py", RECOVER), ("recover-log.py", RECOVER_LOG)];
    let hashes = scripts.map(|(_, text)| Hash::of(text.as_bytes()));
    let page = page(&config, &open, &hashes, key.is_some())?;
    put(&args.dir, "README.txt", page.as_bytes(), 0o644)?;
    for ((name, text), hash) in scripts.iter().zip(&hashes) {
        put(&args.dir, name, text.as_bytes(), 0o755)?;
        put(&args.dir, &format!("{name}.sha256"), format!("{hash}  {name}\n").as_bytes(), 0o644)?;
    }
    if let Location::S3(options) = Location::parse(&config.location()?)? {
        let own = own(&config)?;
        let place = Place { bucket: &options.bucket, prefix: &options.prefix };
        put_policies(&args.dir, &place, &own)?;
        shell.say(
            "policies/ has what the agent, the keeper, who restores and who watches need in the bucket, and no more.",
        );
        shell.say(if own.sources.is_empty() {
            "This configuration has no source yet: agent.json lets a host write to all of them. Write the kit again when it has.".to_owned()
        } else {
            format!("agent.json lets this host write where {} lie, and nowhere else: a new source or group needs a new one.", own.sources.join(", "))
        });
        let length = policies::agent(&place, &own).to_string().len();
        if length > MANAGED_MAX {
            shell.warn(format!("agent.json has {length} characters, and IAM takes {MANAGED_MAX}: divide it into several policies of the same user"));
        }
    }
    if let Some(key) = &key {
        put(&args.dir, "recovery.key", key, 0o600)?;
    }
    shell.say(format!(
        "The kit is at {}. Fill in the contacts, print README.txt, and keep it off this machine.",
        args.dir.display()
    ));
    if key.is_none() {
        shell.warn(
            "the recovery key is NOT in the kit: add it, or note where it lies. Without it nothing can be restored.",
        );
    }
    Ending::new(Exit::Done, json!({"dir": args.dir, "recovery_key": key.is_some(), "recover_sha256": hashes[0]}))
}

/// What the configuration works on.
fn own(config: &Config) -> Result<Own> {
    let plans = plan::files(config)?;
    let stem = |path: &PathBuf| Some(SourceName::of_plan(path.file_stem()?.to_str()?).ok()?.to_string());
    Ok(Own {
        sources: config.source.iter().map(|source| source.name.to_string()).collect(),
        plans: plans.iter().filter_map(stem).collect(),
        groups: config.group.iter().map(|group| group.name.to_string()).collect(),
    })
}

/// What each role may do in the bucket, as IAM takes it; `create-only.json` is for the bucket itself.
fn put_policies(dir: &Path, place: &Place, own: &Own) -> Result<()> {
    let all = [
        ("agent", policies::agent(place, own)),
        ("keeper", policies::keeper(place)),
        ("restorer", policies::restorer(place)),
        ("watcher", policies::watcher(place)),
        ("create-only", policies::create_only(place)),
    ];
    for (name, policy) in all {
        let text = serde_json::to_string_pretty(&policy)? + "\n";
        put(&dir.join("policies"), &format!("{name}.json"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

fn put(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let path = directory.join(name);
    durable::publish_new(&path, bytes, mode).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => Failure::new(
            Kind::Usage,
            format!("{} exists already", path.display()),
            "It was left as it is. Write the kit to a new directory.",
        ),
        _ => anyhow::Error::new(e).context(format!("write {}", path.display())),
    })
}

/// How one gets a copy of the repository with tools that everybody has.
fn copy_command(location: &Location) -> String {
    match location {
        Location::Directory(path) => format!("cp -a '{}' ./repository", path.display()),
        Location::S3(options) => {
            let endpoint = options.endpoint.as_ref().map_or(String::new(), |url| format!(" --endpoint-url '{url}'"));
            let prefix = if options.prefix.is_empty() { String::new() } else { format!("/{}", options.prefix) };
            format!("aws{endpoint} s3 sync 's3://{}{prefix}' ./repository", options.bucket)
        }
    }
}

fn page(config: &Config, open: &Open, hashes: &[Hash; 2], with_key: bool) -> Result<String> {
    let variable = |name: &str| std::env::var(name).ok();
    let (repo, root) = (location::in_full(&config.location()?, variable), open.trust.root.id());
    let names: Vec<String> = series::sources(&open.store)?.iter().map(|s| s.as_str().to_owned()).collect();
    let key = if with_key {
        "recovery.key in this folder"
    } else {
        "NOT in this folder. It lies at: ______________________________"
    };
    Ok(format!(
        "BREAK GLASS: how to get the data back\n=====================================\n\nWritten {now} on {host}.\n\n\
         Repository        {repo}\nRoot fingerprint  {root}\nRecipients        {recipients}\nRecovery key      {key}\nSources           {sources}\n\n\
         Who can get at the store (account, console, second factor): ______________________________\n\
         Who decides to restore, and who can be called at night:      ______________________________\n\n\
         With blackstart, on any machine:{credentials}\n\n  blackstart status --repo '{repo}' --root {root}\n  \
         blackstart restore SOURCE --repo '{repo}' --root {root} --identity recovery.key --to ./SOURCE-restored\n\n\
         Without blackstart (python3, age, zstd, openssh-client):\n\n  sha256sum recover.py      must be {recover}\n  sha256sum recover-log.py  must be {log}\n  \
         {copy}\n  \
         python3 recover.py --repository ./repository --root {root} list\n  \
         python3 recover.py --repository ./repository --root {root} --identity recovery.key restore SOURCE ./SOURCE-restored\n\n  \
         README.txt in the copy has every step, how to start each kind of database, and what the messages mean.\n\n\
         Nothing is overwritten by a restore. A wrong fingerprint means a wrong or replaced repository: stop, and find out which.\n",
        copy = copy_command(&Location::parse(&repo)?),
        credentials = if repo.starts_with("s3://") {
            " (first: export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…; reading is enough)"
        } else {
            ""
        },
        recover = hashes[0],
        log = hashes[1],
        now = time(open.now()),
        host = config.host_name(),
        recipients = open.trust.recipients.join(" "),
        sources = names.join(", "),
    ))
}
