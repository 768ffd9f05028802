//! From bytes of the log to its records: pages, continuations, segment switches (PostgreSQL's `access/xlog_internal.h`, `access/xlogrecord.h`).
//!
//! Bounded and tolerant: a page is held at a time, and one record; a record that is longer than a bound is passed over; where the bytes stop making
//! sense, the log ends.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes of a page of the log: 8 KiB in every build that is distributed.
const PAGE: usize = 8192;
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
/// Longest record that is looked into; longer ones are counted and passed over.
const RECORD_MAX: usize = 4 << 20;
/// Longest record that PostgreSQL writes.
const RECORD_LIMIT: usize = 1020 << 20;
/// `XLP_FIRST_IS_CONTRECORD`, `XLP_LONG_HEADER`.
const CONTINUED: u16 = 1;
const LONG: u16 = 2;
/// Page magics of the majors from 13 to 18.
const MAGICS: [(u16, u32); 6] = [(0xd106, 13), (0xd10d, 14), (0xd110, 15), (0xd113, 16), (0xd116, 17), (0xd118, 18)];

/// One record. `body` is what follows its header: empty where the record was passed over.
#[derive(Debug)]
pub struct Record<'a> {
    pub start: u64,
    /// Where the next one begins, at the earliest.
    pub end: u64,
    pub major: u32,
    pub length: u32,
    pub xid: u32,
    pub manager: u8,
    pub info: u8,
    pub body: &'a [u8],
}

/// A part of a record that changes one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block<'a> {
    /// Tablespace, database, file node.
    pub relation: (u32, u32, u32),
    pub fork: u8,
    pub number: u32,
    pub data: &'a [u8],
    /// An image of the whole page, where it is stored uncompressed: its bytes without the hole, the hole's offset and length.
    pub image: Option<(&'a [u8], usize, usize)>,
}

/// Reads a log that is fed in order.
pub struct Records {
    segment_size: u64,
    major: u32,
    /// The page under way, and where it begins.
    page: Vec<u8>,
    at: u64,
    partial: Option<Partial>,
    /// Nothing counts before this: the rest of a segment after a switch.
    skip_to: u64,
    /// Where the log stopped making sense.
    ended: Option<u64>,
    scratch: Vec<u8>,
}

struct Partial {
    start: u64,
    total: usize,
    have: usize,
    /// Header and body; only the header where the record is too long.
    bytes: Vec<u8>,
}

impl Records {
    /// `at`: the position of the first byte that will be fed.
    pub fn new(segment_size: u64, at: u64) -> Records {
        Records {
            segment_size,
            major: 0,
            page: Vec::with_capacity(PAGE),
            at,
            partial: None,
            skip_to: at.next_multiple_of(PAGE as u64),
            ended: None,
            scratch: Vec::new(),
        }
    }

    /// Where the log ended, if it did.
    pub fn ended(&self) -> Option<u64> {
        self.ended
    }

    /// Takes the bytes that follow, and gives each record that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(Record)) {
        while !bytes.is_empty() && self.ended.is_none() {
            let in_page = usize::try_from(self.at % PAGE as u64).unwrap_or(0);
            let room = PAGE - in_page - self.page.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.page.extend_from_slice(now);
            bytes = later;
            if in_page + self.page.len() == PAGE {
                self.take_page(sink);
            }
        }
    }

    /// The log ends here: gives the records of the page under way.
    pub fn finish(&mut self, sink: &mut dyn FnMut(Record)) {
        if !self.page.is_empty() && self.ended.is_none() {
            self.take_page(sink);
        }
        let at = self.partial.as_ref().map_or(self.at, |partial| partial.start);
        self.ended.get_or_insert(at);
    }

    fn take_page(&mut self, sink: &mut dyn FnMut(Record)) {
        let page = std::mem::take(&mut self.page);
        let start = self.at;
        if start >= self.skip_to && self.read_page(start, &page, sink).is_none() {
            self.ended = Some(self.partial.as_ref().map_or(start, |partial| partial.start));
        }
        self.at = start + page.len() as u64;
        self.page = page;
        self.page.clear();
    }

    /// `None`: this is no page of the log.
    fn read_page(&mut self, start: u64, page: &[u8], sink: &mut dyn FnMut(Record)) -> Option<()> {
        let info = u16_at(page, 2)?;
        self.major = MAGICS.iter().find(|(magic, _)| Some(*magic) == u16_at(page, 0))?.1;
        if u64_at(page, 8)? != start {
            return None;
        }
        let mut at = if info & LONG != 0 { LONG_HEADER } else { SHORT_HEADER };
        let rest = u32_at(page, 16)? as usize;
        match self.partial.take() {
            Some(partial) if info & CONTINUED != 0 && rest == partial.total - partial.have => {
                at = self.go_on(partial, page, at, start, sink)?;
            }
            // A continuation of what was not read, or of a record that was given up (`XLOG_OVERWRITE_CONTRECORD`).
            _ if info & CONTINUED != 0 => at += rest.next_multiple_of(8),
            _ => {}
        }
        while at + 4 <= page.len() && start + at as u64 >= self.skip_to && self.partial.is_none() {
            let total = u32_at(page, at)? as usize;
            if total == 0 {
                // Zeros: what follows was not written yet.
                return if page[at..].iter().all(|b| *b == 0) { Some(()) } else { None };
            }
            if !(RECORD_HEADER..=RECORD_LIMIT).contains(&total) {
                return None;
            }
            let partial = Partial { start: start + at as u64, total, have: 0, bytes: Vec::new() };
            at = self.go_on(partial, page, at, start, sink)?;
        }
        Some(())
    }

    /// Takes what the page has of the record from `at` on; gives the offset after it.
    fn go_on(
        &mut self,
        mut partial: Partial,
        page: &[u8],
        at: usize,
        start: u64,
        sink: &mut dyn FnMut(Record),
    ) -> Option<usize> {
        let take = (partial.total - partial.have).min(page.len().checked_sub(at)?);
        let keep = if partial.total > RECORD_MAX { RECORD_HEADER } else { partial.total };
        let wanted = keep.saturating_sub(partial.bytes.len()).min(take);
        if partial.bytes.is_empty() {
            partial.bytes = std::mem::take(&mut self.scratch);
            partial.bytes.clear();
        }
        partial.bytes.extend_from_slice(&page[at..at + wanted]);
        partial.have += take;
        if partial.have < partial.total {
            self.partial = Some(partial);
            return Some(page.len());
        }
        let after = (at + take).next_multiple_of(8);
        self.give(&partial, start + after as u64, sink)?;
        self.scratch = partial.bytes;
        Some(after)
    }

    fn give(&mut self, partial: &Partial, end: u64, sink: &mut dyn FnMut(Record)) -> Option<()> {
        let (header, body) = partial.bytes.split_at_checked(RECORD_HEADER)?;
        if partial.total <= RECORD_MAX {
            let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
            crc.update(body);
            crc.update(&header[..RECORD_HEADER - 4]);
            if crc.finalize() != u64::from(u32_at(header, 20)?) {
                return None;
            }
        }
        let (info, manager) = (header[16], header[17]);
        let mut end = end;
        if (manager, info & 0xf0) == (0, 0x40) {
            end = (partial.start / self.segment_size + 1) * self.segment_size;
            self.skip_to = end;
        }
        sink(Record {
            start: partial.start,
            end,
            major: self.major,
            length: u32::try_from(partial.total).ok()?,
            xid: u32_at(header, 4)?,
            manager,
            info,
            body,
        });
        Some(())
    }
}

impl<'a> Record<'a> {
    /// The blocks that the record changes, and its main data. `None` where it cannot be understood.
    pub fn parts(&self) -> Option<(Vec<Block<'a>>, &'a [u8])> {
        let (mut blocks, mut rest) = (Vec::new(), self.body);
        let (mut lengths, mut total, mut main) = (Vec::new(), 0usize, 0usize);
        let mut last = None;
        while rest.len() > total {
            match *rest.first()? {
                255 => {
                    main = usize::from(*rest.get(1)?);
                    rest = rest.get(2..)?;
                    // Main data comes last.
                    break;
                }
                254 => {
                    main = u32_at(rest, 1)? as usize;
                    rest = rest.get(5..)?;
                    break;
                }
                253 => rest = rest.get(3..)?,
                252 => rest = rest.get(5..)?,
                0..=32 => {
                    let (block, image, data, used) = self.block(rest, last)?;
                    last = Some(block.relation);
                    total += image.0 + data;
                    lengths.push((image, data));
                    blocks.push(block);
                    rest = rest.get(used..)?;
                }
                _ => return None,
            }
        }
        for (block, ((image, hole, compressed), data)) in blocks.iter_mut().zip(lengths) {
            let (bytes, after) = rest.split_at_checked(image)?;
            let (data, after) = after.split_at_checked(data)?;
            block.image = (image > 0 && !compressed).then_some((bytes, hole, PAGE.saturating_sub(image)));
            (block.data, rest) = (data, after);
        }
        (rest.len() == main).then_some((blocks, rest))
    }

    /// A block header: the block, its image (length, offset of the hole, compressed), the length of its data, and the bytes of the header.
    #[expect(clippy::type_complexity, reason = "one caller, which takes it apart at once")]
    fn block(
        &self,
        header: &[u8],
        last: Option<(u32, u32, u32)>,
    ) -> Option<(Block<'a>, (usize, usize, bool), usize, usize)> {
        let flags = *header.get(1)?;
        let data = usize::from(u16_at(header, 2)?);
        let (mut at, mut image) = (4, (0, 0, false));
        if flags & 0x10 != 0 {
            let info = *header.get(at + 4)?;
            // Before 15 one bit said that the image is compressed; since then three bits say how.
            let compressed = if self.major >= 15 { info & 0x1c != 0 } else { info & 0x02 != 0 };
            image = (usize::from(u16_at(header, at)?), usize::from(u16_at(header, at + 2)?), compressed);
            at += if compressed && info & 0x01 != 0 { 7 } else { 5 };
        }
        let relation = if flags & 0x80 == 0 {
            let relation = (u32_at(header, at)?, u32_at(header, at + 4)?, u32_at(header, at + 8)?);
            at += 12;
            relation
        } else {
            last?
        };
        let block = Block { relation, fork: flags & 0x0f, number: u32_at(header, at)?, data: &[], image: None };
        Some((block, image, data, at + 4))
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
