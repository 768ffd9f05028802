//! What one stage does: programs, requests, waiting.

use anyhow::{Context, Result, anyhow, bail};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::Secrets;
use super::{Notify, Variables, WaitFor};
use crate::child::{Child, Spec};

/// Bytes of an answer that are looked at.
const ANSWER_MAX: u64 = 1 << 20;
/// Longest single request.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs a program to its end; what it has started goes on. The error quotes what it said last.
pub fn program(argv: &[String], variables: &Variables, secrets: &Secrets, timeout: Duration) -> Result<String> {
    // What it writes to stdout may hold anything, secrets too, and a service holds it open: it is not read.
    let spec = Spec { secret: secrets.clone(), starts: true, ..Spec::new(variables.fill_all(argv)?) };
    Child::spawn(&spec)?.wait(timeout)?.success()?;
    Ok("exit 0".into())
}

/// GETs `url`: the status and the begin of the answer. A status of any kind is an answer.
pub fn get(url: &str, timeout: Duration) -> Result<(u16, String)> {
    let mut answer = client(timeout).get(url).call().with_context(|| format!("ask {url}"))?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string();
    Ok((status, body.with_context(|| format!("read the answer of {url}"))?))
}

fn client(timeout: Duration) -> ureq::Agent {
    let tls = ureq::tls::TlsConfig::builder()
        .provider(ureq::tls::TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .root_certs(ureq::tls::RootCerts::Specific(Arc::new(
            rustls_native_certs::load_native_certs()
                .certs
                .iter()
                .map(|der| ureq::tls::Certificate::from_der(der).to_owned())
                .collect(),
        )))
        .build();
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout.min(PATIENCE)))
        .http_status_as_error(false)
        .tls_config(tls)
        .build()
        .new_agent()
}

/// Waits until it is there.
pub fn wait(what: &WaitFor, variables: &Variables, timeout: Duration) -> Result<String> {
    let until = Instant::now() + timeout;
    loop {
        let (name, found) = look(what, variables)?;
        match found {
            Ok(()) => return Ok(format!("{name} is there")),
            Err(why) if Instant::now() >= until => {
                bail!("{name} is not there after {} s: {why:#}", timeout.as_secs())
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn look(what: &WaitFor, variables: &Variables) -> Result<(String, Result<()>)> {
    Ok(match what {
        WaitFor::Http(url) => {
            let url = variables.fill(url)?;
            let found = get(&url, Duration::from_secs(5)).and_then(|(status, _)| match status {
                200..=299 => Ok(()),
                other => Err(anyhow!("it answers {other}")),
            });
            (url, found)
        }
        WaitFor::Tcp(address) => {
            let address = variables.fill(address)?;
            let found = TcpStream::connect(&address).map(drop).map_err(Into::into);
            (address, found)
        }
        WaitFor::File(path) => {
            let path = variables.fill(path)?;
            let found = Path::new(&path).symlink_metadata().map(drop).map_err(Into::into);
            (path, found)
        }
    })
}

/// Tells people. `base` is the configuration's directory.
pub fn notify(notify: &Notify, variables: &Variables, secrets: &Secrets, base: &Path) -> Result<String> {
    let text = variables.fill(&notify.text)?;
    if let Some(url) = &notify.webhook {
        let url = url.read(base)?;
        // The address may be a secret: it stays out of the error.
        let answer = client(PATIENCE).post(url.as_str()).send_json(serde_json::json!({"text": text}));
        let status = answer.map_err(|_| anyhow!("the webhook cannot be reached"))?.status();
        anyhow::ensure!(status.is_success(), "the webhook answers {status}");
    }
    if !notify.run.is_empty() {
        program(&notify.run, variables, secrets, PATIENCE)?;
    }
    Ok(text)
}
