//! One try to send one message. Errors name the channel's answer, never its address, which may hold a secret.

use anyhow::{Context, Result, anyhow, bail, ensure};
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls as LettreTls, TlsParameters};
use lettre::{SmtpTransport, Transport};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::channel::{Channel, Command, Email, Tls, check_url};
use super::{Notice, Phase, Severity};
use crate::child::{Child, Spec};
use crate::secret::Text;

/// One try takes no longer.
const PATIENCE: Duration = Duration::from_secs(15);
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// What goes through a channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Notice(Box<Notice>),
    /// To one of the addresses of a [`super::Ping`]: how far it is, and the id that pairs start and end.
    Ping {
        of: Pulse,
        suffix: &'static str,
        run: String,
    },
}

/// What a ping is a sign of life of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    Backup,
    Drill,
    Watch,
}

/// Sends `message` through `channel`. Secrets are read now, so that a changed one needs no restart; `base` is the configuration's directory.
pub fn send(channel: &Channel, message: &Message, base: &Path) -> Result<()> {
    match message {
        Message::Ping { of, suffix, run } => {
            let Some(ping) = &channel.ping else { return Ok(()) };
            let url = match of {
                Pulse::Backup => &ping.backup,
                Pulse::Drill => &ping.drill,
                Pulse::Watch => &ping.watch,
            };
            let Some(url) = url else { return Ok(()) };
            let url = address(url, base)?;
            let url = format!("{}{suffix}?rid={run}", url.trim_end_matches('/'));
            post(&url, &Value::Null, None, ping.ca.as_deref(), base)
        }
        Message::Notice(notice) => send_notice(channel, notice, base),
    }
}

fn send_notice(channel: &Channel, notice: &Notice, base: &Path) -> Result<()> {
    if let Some(slack) = &channel.slack {
        let text = format!("{}\n{}", headline(notice), said(notice));
        post(&address(&slack.url, base)?, &json!({"text": text}), None, slack.ca.as_deref(), base)
    } else if let Some(webhook) = &channel.webhook {
        let token = webhook.token.as_ref().map(|t| t.read(base)).transpose()?;
        let token = token.as_ref().map(|t| t.as_str());
        post(&address(&webhook.url, base)?, &serde_json::to_value(notice)?, token, webhook.ca.as_deref(), base)
    } else if let Some(pagerduty) = &channel.pagerduty {
        let key = pagerduty.routing_key.read(base)?;
        let url = pagerduty.url.as_deref().unwrap_or(PAGERDUTY);
        post(url, &page(notice, &key), None, pagerduty.ca.as_deref(), base)
    } else if let Some(email) = &channel.email {
        mail(email, notice, base)
    } else if let Some(command) = &channel.command {
        run(command, notice)
    } else {
        Ok(())
    }
}

/// One line that says all.
pub fn headline(notice: &Notice) -> String {
    let mark = match notice.phase {
        Phase::Begun => match notice.problem.severity {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "WARNING",
            Severity::Info => "INFO",
        },
        Phase::Reminder => "STILL",
        Phase::Recovered => "RECOVERED",
        Phase::Test => "TEST",
    };
    format!("[{mark}] {}: {}", notice.host, notice.problem.title)
}

/// What it means and what to do. Of what is over, what was to be done must not read as if it were still.
fn said(notice: &Notice) -> String {
    let Notice { problem, since, at, .. } = notice;
    match notice.phase {
        Phase::Recovered => {
            format!(
                "It is over since {at:.0}, and had stood since {since:.0}. Nothing need be done. It had been: {}",
                problem.detail
            )
        }
        Phase::Reminder => format!("It has stood since {since:.0}. {}", problem.detail),
        Phase::Begun | Phase::Test => problem.detail.clone(),
    }
}

/// <https://developer.pagerduty.com/docs/send-alert-event>
fn page(notice: &Notice, key: &str) -> Value {
    let action = if notice.phase == Phase::Recovered { "resolve" } else { "trigger" };
    let severity = match notice.problem.severity {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    json!({
        "routing_key": key,
        "event_action": action,
        "dedup_key": format!("blackstart/{}/{}", notice.host, notice.problem.key),
        "payload": {
            "summary": headline(notice),
            "source": notice.host,
            "severity": severity,
            "timestamp": notice.at,
            "component": notice.problem.source,
            "custom_details": notice,
        },
    })
}

/// An address that may be a secret; checked here where it could not be when the configuration was read.
fn address(url: &Text, base: &Path) -> Result<String> {
    let url = url.read(base)?;
    check_url(&url).map_err(|what| anyhow!("the address {what}"))?;
    Ok(url.to_string())
}

fn certificates(ca: Option<&Path>, base: &Path) -> Result<Vec<Vec<u8>>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let Some(path) = ca else {
        return Ok(rustls_native_certs::load_native_certs().certs.iter().map(|c| c.to_vec()).collect());
    };
    let path: PathBuf = base.join(path);
    let read = CertificateDer::pem_file_iter(&path).with_context(|| format!("read {}", path.display()))?;
    read.map(|c| Ok(c.with_context(|| format!("read {}", path.display()))?.to_vec())).collect()
}

fn post(url: &str, body: &Value, token: Option<&str>, ca: Option<&Path>, base: &Path) -> Result<()> {
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("blackstart/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("https://") {
        let roots = certificates(ca, base)?;
        let roots: Vec<_> = roots.iter().map(|der| ureq::tls::Certificate::from_der(der).to_owned()).collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .root_certs(RootCerts::new_with_certs(&roots))
            .build();
        config = config.tls_config(tls);
    }
    let mut request = config.build().new_agent().post(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = if body.is_null() { request.send_empty() } else { request.send_json(body) };
    // The error of the client may quote the address.
    let answer = answer.map_err(|e| match e {
        ureq::Error::Io(e) => anyhow!("it cannot be reached: {e}"),
        ureq::Error::Timeout(_) => anyhow!("it did not answer within {} s", PATIENCE.as_secs()),
        ureq::Error::HostNotFound => anyhow!("its name cannot be resolved"),
        ureq::Error::Rustls(e) => anyhow!("TLS: {e}"),
        _ => anyhow!("the request failed"),
    })?;
    let status = answer.status();
    ensure!(status.is_success(), "it answered {status}");
    Ok(())
}

fn mail(email: &Email, notice: &Notice, base: &Path) -> Result<()> {
    let mailbox = |text: &str| text.parse::<Mailbox>().with_context(|| format!("{text:?} is no mail address"));
    let mut message = lettre::Message::builder().from(mailbox(&email.from)?).subject(headline(notice));
    for to in &email.to {
        message = message.to(mailbox(to)?);
    }
    let text = format!(
        "{}\n\n{}\n\nsince {}\nhost {}\n{}",
        notice.problem.title,
        said(notice),
        notice.since,
        notice.host,
        notice.head.as_ref().map_or(String::new(), |h| format!("newest commit {} {}\n", h.seq, h.commit)),
    );
    let message = message.body(text).context("write the mail")?;
    let parameters = || -> Result<TlsParameters> {
        let mut parameters = TlsParameters::builder(email.server.clone());
        if email.ca.is_some() {
            parameters = parameters.certificate_store(CertificateStore::None);
            for der in certificates(email.ca.as_deref(), base)? {
                parameters = parameters.add_root_certificate(Certificate::from_der(der).context("read a certificate")?);
            }
        }
        parameters.build().context("set up TLS for mail")
    };
    let (port, tls) = match email.tls {
        Tls::Starttls => (587, LettreTls::Required(parameters()?)),
        Tls::Implicit => (465, LettreTls::Wrapper(parameters()?)),
        Tls::None => (25, LettreTls::None),
    };
    let mut transport = SmtpTransport::builder_dangerous(email.server.as_str())
        .port(email.port.unwrap_or(port))
        .tls(tls)
        .timeout(Some(PATIENCE));
    if let (Some(user), Some(password)) = (&email.user, &email.password) {
        transport = transport.credentials(Credentials::new(user.clone(), password.read(base)?.to_string()));
    }
    transport.build().send(&message).context("the mail server refused")?;
    Ok(())
}

fn run(command: &Command, notice: &Notice) -> Result<()> {
    let mut spec = Spec::new(&command.argv);
    spec.input = true;
    let mut child = Child::spawn(&spec)?;
    if let Some(mut input) = child.input() {
        // A program that does not read its input may still do its work.
        let _unread = input.write_all(&serde_json::to_vec(notice)?);
    }
    let wait = command.timeout.and_then(|t| Duration::try_from(t).ok()).unwrap_or(PATIENCE);
    let Ok(ended) = child.wait(wait) else { bail!("the program did not end in time and was killed") };
    ended.success()
}
