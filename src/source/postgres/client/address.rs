//! `postgres://user@host:port/database?key=value`: where a server is and how it is to be trusted.
//!
//! As in libpq ("Connection URIs" in the PostgreSQL manual), with two differences: several hosts are refused, and the default of `sslmode` is
//! safe: `verify-full`, but for Unix sockets and addresses of this machine, where it is `prefer`.

use anyhow::{Context, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

use crate::accounts::Accounts;
use crate::error::{Failure, Kind};
use crate::net::Roots;

const PORT: u16 = 5432;
/// Where servers keep their sockets: Debian's directory, then PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const KNOWN: &str =
    "host, port, user, dbname, sslmode, sslrootcert, channel_binding, connect_timeout, application_name";

/// A server, and whom to be there. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub database: Option<String>,
    pub password: Option<Zeroizing<String>>,
    pub tls: TlsMode,
    pub roots: Roots,
    pub binding: Binding,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// What the server shows in `pg_stat_activity`, and matches against `synchronous_standby_names`.
    pub application: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Tcp(String),
    /// The directory of the socket.
    Unix(PathBuf),
}

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    /// TLS if the server has it; who the server is stays unproven.
    Prefer,
    /// TLS or nothing; who the server is stays unproven.
    Require,
    /// The certificate must come from a trusted authority.
    VerifyCa,
    /// … and be for this host.
    VerifyFull,
}

/// `channel_binding`: ties the password exchange to the TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    Disable,
    Prefer,
    Require,
}

impl Address {
    /// Reads an address. Unknown keys are errors. Fails with `Kind::Config`.
    pub fn parse(url: &str) -> Result<Address> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| wrong("it does not begin with postgres://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let mut parts = Parts {
            user: filled(decode(user)?),
            password: filled(decode(password)?).map(Zeroizing::new),
            database: filled(decode(database)?),
            ..Parts::default()
        };
        parts.place(place)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong(&format!("{pair:?} has no value")))?;
            parts.set(key, decode(value)?)?;
        }
        parts.finish()
    }

    /// A server of this machine on a socket.
    pub fn local(directory: &Path, port: u16, user: &str, database: &str) -> Address {
        Address {
            host: Host::Unix(directory.to_owned()),
            port,
            user: user.to_owned(),
            database: Some(database.to_owned()),
            password: None,
            tls: TlsMode::Disable,
            roots: Roots::System,
            binding: Binding::Prefer,
            connect: Duration::from_secs(10),
            application: "blackstart".to_owned(),
        }
    }

    /// Whether what is sent can be read on the way by nobody but this machine.
    pub fn is_local(&self) -> bool {
        match &self.host {
            Host::Unix(_) => true,
            Host::Tcp(host) => is_loopback(host),
        }
    }

    /// The socket of a server that listens in a directory.
    pub fn socket(&self) -> Option<PathBuf> {
        match &self.host {
            Host::Unix(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            Host::Tcp(_) => None,
        }
    }

    /// The address again, for the configuration and for people: everything but the password.
    pub fn without_password(url: &str) -> String {
        let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let secret = |pair: &&str| pair.split_once('=').is_some_and(|(key, _)| key.ends_with("password"));
        let query: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !secret(pair)).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let (authority, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let Some((credentials, place)) = authority.rsplit_once('@') else { return format!("{scheme}://{rest}{query}") };
        let user = credentials.split_once(':').map_or(credentials, |(user, _)| user);
        format!("{scheme}://{user}@{place}{tail}{query}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => write!(f, "postgres://{}@[{host}]:{}", self.user, self.port)?,
            Host::Tcp(host) => write!(f, "postgres://{}@{host}:{}", self.user, self.port)?,
            Host::Unix(_) => write!(f, "postgres://{}@", self.user)?,
        }
        if let Some(database) = &self.database {
            write!(f, "/{database}")?;
        }
        match &self.host {
            Host::Unix(directory) if self.database.is_none() => {
                write!(f, "/?host={}&port={}", directory.display(), self.port)
            }
            Host::Unix(directory) => write!(f, "?host={}&port={}", directory.display(), self.port),
            Host::Tcp(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[derive(Default)]
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    database: Option<String>,
    tls: Option<TlsMode>,
    roots: Option<String>,
    binding: Option<Binding>,
    connect: Option<u64>,
    application: Option<String>,
}

impl Parts {
    /// `host`, `host:port`, `[::1]:port`, or nothing.
    fn place(&mut self, place: &str) -> Result<()> {
        if place.contains(',') {
            return Err(wrong("it names several hosts; name the one to back up"));
        }
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
            None => place.rsplit_once(':').unwrap_or((place, "")),
        };
        self.host = filled(decode(host)?);
        self.port = filled(decode(port)?).map(|port| number(&port, "port")).transpose()?;
        Ok(())
    }

    fn set(&mut self, key: &str, value: String) -> Result<()> {
        match key {
            "host" => self.host = Some(value),
            "port" => self.port = Some(number(&value, key)?),
            "user" => self.user = Some(value),
            "dbname" => self.database = Some(value),
            "sslmode" => {
                self.tls = Some(match value.as_str() {
                    "disable" => TlsMode::Disable,
                    "allow" | "prefer" => TlsMode::Prefer,
                    "require" => TlsMode::Require,
                    "verify-ca" => TlsMode::VerifyCa,
                    "verify-full" => TlsMode::VerifyFull,
                    _ => return Err(wrong("sslmode is disable, prefer, require, verify-ca or verify-full")),
                });
            }
            "sslrootcert" => self.roots = Some(value),
            "channel_binding" => {
                self.binding = Some(match value.as_str() {
                    "disable" => Binding::Disable,
                    "prefer" => Binding::Prefer,
                    "require" => Binding::Require,
                    _ => return Err(wrong("channel_binding is disable, prefer or require")),
                });
            }
            "connect_timeout" => self.connect = Some(number(&value, key)?),
            "application_name" => self.application = Some(value),
            "password" => return Err(wrong("a password does not belong into its query")),
            _ => return Err(wrong(&format!("it has an unknown key, {key}; known are {KNOWN}"))),
        }
        Ok(())
    }

    fn finish(self) -> Result<Address> {
        let host = match self.host {
            Some(host) if host.starts_with('/') => Host::Unix(host.into()),
            Some(host) => Host::Tcp(host),
            None => Host::Unix(socket_directory(self.port.unwrap_or(PORT))),
        };
        let tls = match (&host, self.tls) {
            (Host::Unix(_), _) => TlsMode::Disable,
            (_, Some(mode)) => mode,
            (Host::Tcp(host), None) if is_loopback(host) => TlsMode::Prefer,
            (Host::Tcp(_), None) => TlsMode::VerifyFull,
        };
        Ok(Address {
            port: self.port.unwrap_or(PORT),
            user: self.user.map_or_else(own_name, Ok)?,
            database: self.database,
            password: self.password,
            tls,
            roots: match self.roots.as_deref() {
                None | Some("system") => Roots::System,
                Some(path) => Roots::File(path.into()),
            },
            binding: self.binding.unwrap_or(Binding::Prefer),
            connect: Duration::from_secs(self.connect.filter(|s| *s > 0).unwrap_or(10)),
            application: self.application.unwrap_or_else(|| "blackstart".to_owned()),
            host,
        })
    }
}

/// The directory with a socket for `port`; the first that could have one where none has.
fn socket_directory(port: u16) -> PathBuf {
    let has = |directory: &&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    SOCKET_DIRECTORIES.iter().find(|d| has(d)).unwrap_or(&SOCKET_DIRECTORIES[0]).into()
}

/// The name of the user that this process runs as: what libpq takes where none is given.
fn own_name() -> Result<String> {
    let name = Accounts::load().user(rustix::process::geteuid().as_raw());
    let name = String::from_utf8(name.0).ok().filter(|name| !name.is_empty());
    name.ok_or_else(|| wrong("it names no user"))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn number<T: std::str::FromStr>(text: &str, key: &str) -> Result<T> {
    text.parse().map_err(|_| wrong(&format!("{key} is not a number that can be used")))
}

fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// `%XX` to bytes.
fn decode(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b != b'%' {
            out.push(b);
            continue;
        }
        let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        out.push(hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or_else(|| wrong("it has a malformed %"))?);
        rest = &rest[2..];
    }
    String::from_utf8(out).context("an address of a server is UTF-8")
}

/// The address itself is not quoted: it may have a password in it.
fn wrong(what: &str) -> anyhow::Error {
    Failure::new(
        Kind::Config,
        format!("the address of the PostgreSQL server cannot be used: {what}"),
        "Nothing was done. Write postgres://user@host:5432/database?sslmode=verify-full, or postgres://user@/?host=/run/postgresql for a socket.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_libpq_reads_them() {
        let a =
            Address::parse("postgres://me:p%40ss@db.example:5433/shop?sslmode=require&sslrootcert=/ca.pem").unwrap();
        assert_eq!((a.host.clone(), a.port), (Host::Tcp("db.example".into()), 5433));
        assert_eq!((a.user.as_str(), a.database.as_deref()), ("me", Some("shop")));
        assert_eq!(a.password.as_ref().unwrap().as_str(), "p@ss");
        assert_eq!((a.tls, a.roots.clone()), (TlsMode::Require, Roots::File("/ca.pem".into())));
        assert_eq!(
            format!("{a} {a:?}"),
            "postgres://me@db.example:5433/shop Address(postgres://me@db.example:5433/shop)"
        );
        let a = Address::parse("postgresql://me@/?host=/run/pg&port=5555").unwrap();
        assert_eq!(a.socket().unwrap(), Path::new("/run/pg/.s.PGSQL.5555"));
        assert_eq!(Address::parse(&a.to_string()).unwrap(), a);
        let a = Address::parse("postgres://me@%2Frun%2Fpg/shop").unwrap();
        assert_eq!(a.host, Host::Unix("/run/pg".into()));
        assert_eq!(Address::parse("postgres://me@[::1]:7").unwrap().host, Host::Tcp("::1".into()));
    }

    #[test]
    fn the_default_is_safe() {
        let tls = |url: &str| Address::parse(url).unwrap().tls;
        assert_eq!(tls("postgres://me@db.example"), TlsMode::VerifyFull);
        assert_eq!(tls("postgres://me@127.0.0.1"), TlsMode::Prefer);
        assert_eq!(tls("postgres://me@localhost?sslmode=verify-ca"), TlsMode::VerifyCa);
        assert_eq!(tls("postgres://me@/?host=/run&sslmode=require"), TlsMode::Disable);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "mysql://x",
            "postgres://u:hunter2@a,b/x",
            "postgres://u:hunter2@h:99999",
            "postgres://u:hunter2@h/d?sslmod=x",
            "postgres://u@h/?password=hunter2",
            "postgres://u:hunter2@h/%zz",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(crate::error::kind_of(&error), Kind::Config, "{url}");
            assert!(!format!("{error:#}").contains("hunter2"), "{error:#}");
        }
        assert_eq!(Address::without_password("postgres://u:p@h:1/d?x=y"), "postgres://u@h:1/d?x=y");
        assert_eq!(Address::without_password("postgres://h/d"), "postgres://h/d");
        assert_eq!(
            Address::without_password("postgres://u@/d?host=/s&password=p&port=1"),
            "postgres://u@/d?host=/s&port=1"
        );
        assert_eq!(Address::without_password("postgres://h/d?password=p"), "postgres://h/d");
    }
}
