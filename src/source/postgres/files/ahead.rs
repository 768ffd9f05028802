//! Reading ahead in the file that is being read: a few threads take a block each, and the blocks come out in the file's order. Nothing is read of a
//! file before the pipeline has asked for its first byte, since it passes over most.

use anyhow::{Context, Result, anyhow};
use async_channel::{Receiver, Sender};
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use super::relation::{Pages, read_at};

/// Bytes of a block: whole pages of any size that a server has.
pub const BLOCK: usize = 1 << 20;
/// Threads at most; each has one block in hand and one waiting.
const THREADS_MAX: usize = 4;

/// The threads. They end when this is dropped.
pub struct Pool {
    jobs: Sender<Job>,
    threads: usize,
}

struct Job {
    file: Arc<File>,
    at: u64,
    bytes: usize,
    pages: Option<Pages>,
    done: Sender<Result<Block>>,
}

/// Bytes that were read, and how many of their pages are damaged.
pub struct Block {
    pub bytes: Vec<u8>,
    pub damaged: u64,
}

impl Pool {
    pub fn start() -> Result<Pool> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let (jobs, waiting) = async_channel::bounded::<Job>(2 * threads);
        for _ in 0..threads {
            let waiting = waiting.clone();
            let work = move || {
                while let Ok(job) = waiting.recv_blocking() {
                    let mut bytes = vec![0; job.bytes];
                    let read = read_at(&job.file, &mut bytes, job.at, job.pages);
                    // Nobody waits for it where the run has failed meanwhile.
                    drop(job.done.send_blocking(read.map(|damaged| Block { bytes, damaged })));
                }
            };
            std::thread::Builder::new().name("read-ahead".into()).spawn(work).context("start a thread that reads")?;
        }
        Ok(Pool { jobs, threads })
    }
}

/// Blocks of one file on their way, in its order.
#[derive(Default)]
pub struct Ahead {
    coming: VecDeque<Receiver<Result<Block>>>,
    /// Where the next block begins that nobody was asked for.
    next: u64,
}

impl Ahead {
    /// The next block of a file of `size` bytes; `None` at its end.
    pub fn next(&mut self, pool: &Pool, file: &Arc<File>, size: u64, pages: Option<Pages>) -> Result<Option<Block>> {
        while self.coming.len() < 2 * pool.threads && self.next < size {
            let bytes = (size - self.next).min(BLOCK as u64) as usize;
            let (done, block) = async_channel::bounded(1);
            let job = Job { file: Arc::clone(file), at: self.next, bytes, pages, done };
            pool.jobs.send_blocking(job).map_err(|_| anyhow!("the threads that read have stopped"))?;
            self.coming.push_back(block);
            self.next += bytes as u64;
        }
        let Some(block) = self.coming.pop_front() else { return Ok(None) };
        block.recv_blocking().context("a thread that reads has stopped; this is a bug, please report it")?.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn blocks_come_in_order_whoever_reads_them() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..11 * BLOCK + 8192).map(|n| (n / 4096) as u8 ^ n as u8).collect();
        file.write_all(&bytes).unwrap();
        let (file, pool) = (Arc::new(file), Pool::start().unwrap());
        // Longer than the file is: it was cut off meanwhile, and the rest is zero.
        let size = bytes.len() as u64 + 3 * BLOCK as u64;
        let (mut ahead, mut read) = (Ahead::default(), Vec::new());
        while let Some(block) = ahead.next(&pool, &file, size, None).unwrap() {
            assert!(ahead.coming.len() < 2 * pool.threads && block.bytes.len() <= BLOCK);
            read.extend(block.bytes);
        }
        assert_eq!(read.len() as u64, size);
        assert!(read[..bytes.len()] == bytes[..], "the blocks are not in order");
        assert!(read[bytes.len()..].iter().all(|b| *b == 0));
    }
}
