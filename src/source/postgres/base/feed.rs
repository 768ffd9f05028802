//! The answer to BASE_BACKUP as a run of archives, whichever way the server's version sends them.
//!
//! From 15 on there is one copy of everything: each message begins with a letter that tells a new archive (`n`), the manifest (`m`), bytes
//! (`d`) or progress (`p`). Before, each archive is a copy of its own, in the order of the list of tablespaces, and the manifest comes last.
//! (PostgreSQL manual, "Streaming Replication Protocol", BASE_BACKUP, of 15 and of 14.)

use anyhow::{Context, Result, bail, ensure};

use crate::source::postgres::client::{Client, Event, Rows, ServerError, literal};

/// Version from which the options stand in parentheses and there is one copy.
const ONE_COPY: u32 = 150_000;

/// One part of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// A tar of the tablespace with this OID.
    Tablespace(u32),
    /// A tar of the data directory.
    Base,
    Manifest,
}

/// A tablespace beside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    /// Where it lies on the server.
    pub location: String,
}

/// A base backup that is being received.
pub struct Feed {
    client: Client,
    one_copy: bool,
    /// Before 15: the archives to come, the next first.
    coming: Vec<Archive>,
    pub tablespaces: Vec<Tablespace>,
    /// Where the backup begins: LSN and timeline.
    pub start: (String, u32),
    /// Bytes of the client's message that are not yet taken.
    left: (usize, usize),
    /// What has begun in the middle of [`Feed::read`].
    pending: Option<Archive>,
    in_archive: bool,
    ended: bool,
}

impl Feed {
    /// Starts a base backup with its WAL, the server's checkpoint made at once.
    pub fn start(client: Client) -> Result<Feed> {
        Feed::start_with(client, "")
    }

    /// … of what has changed since the backup whose manifest was uploaded.
    pub fn start_with_changes(client: Client) -> Result<Feed> {
        Feed::start_with(client, ", INCREMENTAL")
    }

    fn start_with(mut client: Client, more: &str) -> Result<Feed> {
        let one_copy = client.version() >= ONE_COPY;
        let label = literal("blackstart");
        client.begin(&if one_copy {
            format!(
                "BASE_BACKUP (LABEL {label}, CHECKPOINT 'fast', WAL, WAIT 0, MANIFEST 'yes', MANIFEST_CHECKSUMS 'SHA256'{more})"
            )
        } else {
            format!("BASE_BACKUP LABEL {label} FAST WAL NOWAIT MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'")
        })?;
        let start = rows(&mut client).context("read where the backup begins")?;
        let start = start.one()?;
        let start = (start.required(0)?.to_owned(), start.parse(1)?);
        let list = rows(&mut client).context("read the list of tablespaces")?;
        let mut tablespaces = Vec::new();
        let mut coming = Vec::new();
        for row in &list.rows {
            if row.bytes(0).is_none() {
                coming.push(Archive::Base);
                continue;
            }
            let oid = row.parse(0)?;
            coming.push(Archive::Tablespace(oid));
            tablespaces.push(Tablespace { oid, location: row.required(1)?.to_owned() });
        }
        coming.push(Archive::Manifest);
        let mut feed = Feed {
            client,
            one_copy,
            coming,
            tablespaces,
            start,
            left: (0, 0),
            pending: None,
            in_archive: false,
            ended: false,
        };
        if one_copy {
            let event = feed.client.next()?;
            ensure!(event == Event::CopyOut, "the server answers BASE_BACKUP with {event:?}");
        }
        Ok(feed)
    }

    /// The next archive; what is left of the one before is passed over. `None`: all have come.
    pub fn next_archive(&mut self) -> Result<Option<Archive>> {
        let mut rest = [0; 4096];
        while self.in_archive && self.read(&mut rest)? > 0 {}
        if self.one_copy {
            if self.pending.is_none() && !self.ended {
                self.advance()?;
            }
        } else if !self.coming.is_empty() {
            let event = self.client.next()?;
            ensure!(event == Event::CopyOut, "the server sends {event:?} where an archive should begin");
            self.pending = Some(self.coming.remove(0));
        }
        let archive = self.pending.take();
        self.in_archive = archive.is_some();
        Ok(archive)
    }

    /// Bytes of the current archive; 0 at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.left.0 == self.left.1 && self.in_archive {
            self.advance()?;
        }
        let body = &self.client.body()[self.left.0..self.left.1];
        let n = body.len().min(buffer.len());
        buffer[..n].copy_from_slice(&body[..n]);
        self.left.0 += n;
        Ok(n)
    }

    /// Waits for bytes of the archive, or for its end.
    fn advance(&mut self) -> Result<()> {
        self.left = (0, 0);
        loop {
            match self.client.next()? {
                Event::Data if !self.one_copy => {
                    self.left = (0, self.client.body().len());
                    if self.left.1 > 0 {
                        return Ok(());
                    }
                }
                Event::Data => match self.client.body().split_first() {
                    Some((b'd', bytes)) if !bytes.is_empty() => {
                        ensure!(self.in_archive, "the server sends bytes of no archive");
                        self.left = (1, 1 + bytes.len());
                        return Ok(());
                    }
                    Some((b'd' | b'p', _)) => {}
                    Some((b'n', name)) => return self.begin(named(name)?),
                    Some((b'm', _)) => return self.begin(Archive::Manifest),
                    other => bail!("the server sends an unknown part of a backup: {:?}", other.map(|(b, _)| b)),
                },
                Event::CopyDone => {
                    self.in_archive = false;
                    self.ended = self.one_copy;
                    return Ok(());
                }
                other => bail!("the server sends {other:?} in the middle of a backup"),
            }
        }
    }

    fn begin(&mut self, archive: Archive) -> Result<()> {
        self.in_archive = false;
        self.pending = Some(archive);
        Ok(())
    }

    /// Awaits the end of the command, after the last archive: where the backup ends, as LSN and timeline. `Err` in the inner result: the server
    /// has sent everything, and says that page checksums were wrong.
    pub fn finish(&mut self) -> Result<Result<(String, u32), ServerError>> {
        match self.end() {
            Ok(end) => Ok(Ok(end)),
            Err(error) => match ServerError::of(&error) {
                Some(said) if said.code == "XX001" => Ok(Err(said.clone())),
                _ => Err(error.context("the server ended the backup with an error")),
            },
        }
    }

    fn end(&mut self) -> Result<(String, u32)> {
        let end = rows(&mut self.client)?;
        while self.client.next()? != Event::Ready {}
        Ok((end.one()?.required(0)?.to_owned(), end.one()?.parse(1)?))
    }

    /// Ends a backup that nobody wants any more.
    pub fn abandon(self) {
        // The server also notices that the connection is gone, later.
        let _best_effort = self.client.cancel();
    }

    /// Warnings that have come.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        self.client.take_notices()
    }
}

/// One set of rows of a command that goes on.
fn rows(client: &mut Client) -> Result<Rows> {
    let mut rows = Rows::default();
    loop {
        match client.next()? {
            Event::Columns => {}
            Event::Row => rows.rows.push(client.row()?),
            Event::Complete => return Ok(rows),
            other => bail!("the server sends {other:?} where rows should come"),
        }
    }
}

/// The archive of a name such as `base.tar` or `16384.tar`; the path after it is not needed.
fn named(text: &[u8]) -> Result<Archive> {
    let name = text.split(|b| *b == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).context("the name of an archive")?;
    match name.strip_suffix(".tar") {
        Some("base") => Ok(Archive::Base),
        Some(oid) => oid.parse().map(Archive::Tablespace).with_context(|| format!("unknown archive {name}")),
        None => bail!("unknown archive {name}"),
    }
}
