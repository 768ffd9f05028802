//! An RDB file read by a thread of its own, which counts and checks while the pipeline takes the bytes.

use anyhow::{Context, Result, anyhow};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::rdb::{self, Summary, Tap};

/// Blocks that wait for the pipeline, each of at most 256 KiB.
const WAITING: usize = 8;

/// Gives the bytes of a file piece by piece; `Ok(0)` at its proven end.
pub type Origin = Box<dyn FnMut(&mut Vec<u8>, usize) -> Result<usize> + Send>;

/// A file on its way.
pub struct RdbStream {
    blocks: Receiver<Vec<u8>>,
    reader: Option<JoinHandle<Result<Summary>>>,
    block: Vec<u8>,
    at: usize,
    summary: Option<Summary>,
}

impl RdbStream {
    pub fn start(mut origin: Origin) -> Result<RdbStream> {
        let (to, blocks) = sync_channel::<Vec<u8>>(WAITING);
        let read = move || {
            let mut tap = Tap::new(Box::new(move |buffer, most| {
                let n = origin(buffer, most)?;
                if n > 0 {
                    to.send(buffer[buffer.len() - n..].to_vec()).map_err(|_| anyhow!("the backup has ended"))?;
                }
                Ok(n)
            }));
            rdb::read(&mut tap, &mut |_| {})
        };
        let reader = std::thread::Builder::new().name("rdb".into()).spawn(read).context("start a thread")?;
        Ok(RdbStream { blocks, reader: Some(reader), block: Vec::new(), at: 0, summary: None })
    }

    /// The next bytes; 0 at the end, once the file is known to be whole. A file that is not is an error, and no byte of it counts.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.at == self.block.len() {
            match self.blocks.recv() {
                Ok(block) => (self.block, self.at) = (block, 0),
                Err(_ended) => {
                    if let Some(reader) = self.reader.take() {
                        let summary = reader.join().map_err(|_| anyhow!("the reader of the RDB file panicked"))??;
                        self.summary = Some(summary);
                    }
                    return Ok(0);
                }
            }
        }
        let n = buffer.len().min(self.block.len() - self.at);
        buffer[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }

    /// What was counted; there once `read` has given 0.
    pub fn summary(&self) -> Result<&Summary> {
        self.summary.as_ref().context("the RDB file was not read to its end")
    }
}
