//! Talking to a server in RESP2 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>): one command, one reply.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use super::address::{Address, Endpoint};
use super::refusal::refused;
use crate::net::{Roots, Stream};

/// How long to wait for a connection, and for any byte on it. While a server prepares a full sync it sends a line end about each second.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);
/// The longest reply that is taken, in bytes: INFO of a large cluster has some 100 KB.
const REPLY_MAX: usize = 4 << 20;
/// How deep lists may be nested.
const DEPTH_MAX: u32 = 8;
/// The longest line of a reply.
const LINE_MAX: u64 = 64 << 10;

/// What a server answers, but for errors, which are `Err`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A status, an integer or a string.
    Text(String),
    Nothing,
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(&self) -> Option<&str> {
        match self {
            Reply::Text(text) => Some(text),
            _ => None,
        }
    }
}

pub struct Connection {
    pub endpoint: Endpoint,
    stream: BufReader<Stream>,
}

impl Connection {
    /// Connects and logs in.
    pub fn open(address: &Address, roots: &Roots) -> Result<Connection> {
        let stream = match &address.endpoint {
            Endpoint::Unix(path) => Stream::unix(path)?,
            Endpoint::Tcp { host, port, tls } => {
                let stream = Stream::tcp(host, *port, CONNECT)?;
                stream.set_read_timeout(Some(CONNECT)).context("set up the connection")?;
                if *tls { stream.start_tls(host, roots)? } else { stream }
            }
        };
        stream.set_read_timeout(Some(SILENCE)).context("set up the connection")?;
        stream.set_write_timeout(Some(SILENCE)).context("set up the connection")?;
        let mut connection =
            Connection { endpoint: address.endpoint.clone(), stream: BufReader::with_capacity(64 << 10, stream) };
        if let Some(password) = &address.password {
            match &address.user {
                Some(user) => connection.command(&["AUTH", user, password])?,
                None => connection.command(&["AUTH", password])?,
            };
        }
        Ok(connection)
    }

    /// Sends a command and waits for its reply. A refusal of the server is an `Err` with help.
    pub fn command(&mut self, words: &[&str]) -> Result<Reply> {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        self.command_bytes(&words)
    }

    pub fn command_bytes(&mut self, words: &[&[u8]]) -> Result<Reply> {
        self.send(words)?;
        self.reply(REPLY_MAX, DEPTH_MAX)
            .with_context(|| format!("ask {}", self.endpoint))?
            .map_err(|said| refused(&self.endpoint, &said))
    }

    /// As [`Connection::command`], with a refusal in the server's own words.
    pub fn attempt(&mut self, words: &[&str]) -> Result<Result<Reply, String>> {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        self.send(&words)?;
        self.reply(REPLY_MAX, DEPTH_MAX).with_context(|| format!("ask {}", self.endpoint))
    }

    /// As [`Connection::command`], where a refusal only means that the server does not know this.
    pub fn try_command(&mut self, words: &[&str]) -> Result<Option<Reply>> {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        self.send(&words)?;
        Ok(self.reply(REPLY_MAX, DEPTH_MAX).with_context(|| format!("ask {}", self.endpoint))?.ok())
    }

    pub fn send(&mut self, words: &[&[u8]]) -> Result<()> {
        let mut bytes = zeroize::Zeroizing::new(format!("*{}\r\n", words.len()).into_bytes());
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        let stream = self.stream.get_mut();
        stream.write_all(&bytes).and_then(|()| stream.flush()).with_context(|| format!("send to {}", self.endpoint))
    }

    /// How long a read may wait from now on, at least a millisecond.
    pub fn set_wait(&self, wait: Duration) -> Result<()> {
        let wait = wait.max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(wait)).context("set up the connection")
    }

    /// One line without its end. An empty line is a server's sign of life.
    pub fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let n = self.stream.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).context("wait for the server")?;
        ensure!(n > 0, "the server closed the connection");
        ensure!(line.pop() == Some(b'\n'), "the server closed the connection within a line, or sent an endless one");
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The outer `Err`: the connection broke, or this is no Redis server. The inner: what the server refused, in its words.
    fn reply(&mut self, room: usize, depth: u32) -> Result<Result<Reply, String>> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).context("the server answered with an empty line")?;
        Ok(match kind {
            "+" | ":" => Ok(Reply::Text(rest.to_owned())),
            "-" => Err(rest.to_owned()),
            "$" if rest == "-1" => Ok(Reply::Nothing),
            "$" => {
                let len: usize = rest.parse().context("read the length of a reply")?;
                ensure!(len <= room, "the server answers with {len} bytes, more than {room}");
                let mut bytes = vec![0; len + 2];
                self.stream.read_exact(&mut bytes).context("wait for the server")?;
                Ok(Reply::Text(String::from_utf8_lossy(&bytes[..len]).into_owned()))
            }
            "*" if rest == "-1" => Ok(Reply::Nothing),
            "*" => {
                let count: usize = rest.parse().context("read the length of a reply")?;
                ensure!(depth > 0 && count <= 100_000, "the server answers with too much");
                let mut list = Vec::new();
                for _ in 0..count {
                    match self.reply(room, depth - 1)? {
                        Ok(reply) => list.push(reply),
                        Err(said) => return Ok(Err(said)),
                    }
                }
                Ok(Reply::List(list))
            }
            _ => bail!("{} does not answer like a Redis server", self.endpoint),
        })
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buffer)
    }
}
