//! The id maps of a vector segment (`index_metadata.pickle`), read as Python's pickle format (protocols 2 to 5,
//! <https://docs.python.org/3/library/pickletools.html>), as far as Chroma's files use it. Nothing of it is ever executed: a class is a word.
//!
//! The pairs of dictionaries are handed on as they come, so that maps of millions of ids stay out of memory; what Python memoizes stays in it.

use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// Bytes of one string, of all memoized strings together, and values that wait for what they belong to.
const TEXT_MAX: u64 = 1 << 20;
const MEMO_MAX: u64 = 64 << 20;
const STACK_MAX: usize = 10_000;

/// A value in a dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
    /// Another dictionary, by its number.
    Dictionary(u32),
    /// None, a truth value, a class, …
    Other,
}

#[derive(Debug, Clone)]
enum Item {
    Mark,
    Value(Value),
}

/// Reads a whole pickle. `pair` gets each key and value with the number of its dictionary; the result is the number of the dictionary that is
/// the object or holds its attributes. A torn file is an error.
pub fn read(input: impl Read, pair: &mut dyn FnMut(u32, Value, Value) -> Result<()>) -> Result<u32> {
    let mut machine = Machine {
        input,
        pair,
        stack: Vec::new(),
        memo: Vec::new(),
        memo_bytes: 0,
        last: Value::Other,
        dictionaries: 0,
        state: None,
    };
    loop {
        let opcode = machine.byte().context("the pickle is torn")?;
        if opcode == b'.' {
            let mut end = [0];
            ensure!(machine.input.read(&mut end)? == 0, "bytes follow the end of the pickle");
            return match (machine.state, machine.stack.pop()) {
                (Some(state), _) | (None, Some(Item::Value(Value::Dictionary(state)))) => Ok(state),
                _ => bail!("the pickle holds no dictionary"),
            };
        }
        machine.step(opcode).with_context(|| format!("pickle opcode {opcode:#04x}"))?;
        ensure!(machine.stack.len() <= STACK_MAX, "the pickle is nested too deeply");
    }
}

struct Machine<'a, R> {
    input: R,
    pair: &'a mut dyn FnMut(u32, Value, Value) -> Result<()>,
    stack: Vec<Item>,
    memo: Vec<Value>,
    memo_bytes: u64,
    /// What was pushed last: it may be handed on before it is memoized.
    last: Value,
    dictionaries: u32,
    /// The attributes of the object, once it is built.
    state: Option<u32>,
}

impl<R: Read> Machine<'_, R> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.pass(1)?,
            0x95 => self.pass(8)?,
            0x8c => {
                let length = self.number(1)?;
                self.text(length)?;
            }
            b'X' => {
                let length = self.number(4)?;
                self.text(length)?;
            }
            0x8d => {
                let length = self.number(8)?;
                self.text(length)?;
            }
            0x94 | b'q' | b'r' => self.memoize(opcode)?,
            b'h' | b'j' => {
                let at = self.number(if opcode == b'h' { 1 } else { 4 })?;
                let value = self.memo.get(usize::try_from(at)?).context("nothing is memoized there")?.clone();
                self.push(value)?;
            }
            b'K' | b'M' => {
                let n = self.number(if opcode == b'K' { 1 } else { 2 })?;
                self.push(Value::Number(i64::try_from(n)?))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Number(n.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.pass(8)?;
                self.push(Value::Other)?;
            }
            b'N' | 0x88 | 0x89 | b')' | b']' | 0x8f => self.push(Value::Other)?,
            b'}' => {
                self.dictionaries += 1;
                self.push(Value::Dictionary(self.dictionaries))?;
            }
            b'(' => self.stack.push(Item::Mark),
            b'u' => self.set_items()?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.hand_on(key, value)?;
            }
            b'e' | 0x90 => while !matches!(self.stack.pop().context("no mark")?, Item::Mark) {},
            b'c' => {
                self.line()?;
                self.line()?;
                self.push(Value::Other)?;
            }
            0x93 | 0x81 | b'R' => {
                self.pop()?;
                self.pop()?;
                self.push(Value::Other)?;
            }
            b'b' => match self.pop()? {
                Value::Dictionary(state) => self.state = Some(state),
                _ => bail!("an object is built from no dictionary"),
            },
            _ => bail!("it is not used by Chroma"),
        }
        Ok(())
    }

    /// Pushes a value. A key and a plain value that follow the mark of a dictionary are handed on at once.
    fn push(&mut self, value: Value) -> Result<()> {
        self.last = value.clone();
        self.stack.push(Item::Value(value));
        if let [.., Item::Value(Value::Dictionary(_)), Item::Mark, Item::Value(_), Item::Value(value)] =
            self.stack.as_slice()
            && !matches!(value, Value::Dictionary(_) | Value::Other)
        {
            let (value, key) = (self.pop()?, self.pop()?);
            let mark = self.stack.pop();
            self.hand_on(key, value)?;
            self.stack.extend(mark);
        }
        Ok(())
    }

    /// Gives a pair of the dictionary on top of the stack away.
    fn hand_on(&mut self, key: Value, value: Value) -> Result<()> {
        match self.stack.last() {
            Some(Item::Value(Value::Dictionary(number))) => (self.pair)(*number, key, value),
            _ => bail!("a pair belongs to no dictionary"),
        }
    }

    fn set_items(&mut self) -> Result<()> {
        let mark = self.stack.iter().rposition(|item| matches!(item, Item::Mark)).context("no mark")?;
        let items = self.stack.split_off(mark);
        let mut items = items.into_iter().skip(1);
        while let (Some(Item::Value(key)), Some(Item::Value(value))) = (items.next(), items.next()) {
            self.hand_on(key, value)?;
        }
        Ok(())
    }

    fn memoize(&mut self, opcode: u8) -> Result<()> {
        let at = match opcode {
            b'q' => self.number(1)?,
            b'r' => self.number(4)?,
            _ => self.memo.len() as u64,
        };
        ensure!(at == self.memo.len() as u64, "the memo has a gap");
        self.memo_bytes += 64 + if let Value::Text(text) = &self.last { text.len() as u64 } else { 0 };
        ensure!(self.memo_bytes <= MEMO_MAX, "too large to be looked into");
        self.memo.push(self.last.clone());
        Ok(())
    }

    fn pop(&mut self) -> Result<Value> {
        match self.stack.pop() {
            Some(Item::Value(value)) => Ok(value),
            _ => bail!("a value is missing"),
        }
    }

    fn text(&mut self, length: u64) -> Result<()> {
        ensure!(length <= TEXT_MAX, "a string of {length} bytes");
        let mut bytes = vec![0; usize::try_from(length)?];
        self.input.read_exact(&mut bytes).context("the pickle is torn")?;
        self.push(Value::Text(String::from_utf8(bytes).context("a string is not UTF-8")?))
    }

    fn long(&mut self) -> Result<()> {
        let length = self.byte()?;
        ensure!(length <= 8, "a number of {length} bytes");
        let mut bytes = vec![0; length.into()];
        self.input.read_exact(&mut bytes).context("the pickle is torn")?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        bytes.resize(8, sign);
        let bytes: [u8; 8] = bytes.as_slice().try_into()?;
        self.push(Value::Number(i64::from_le_bytes(bytes)))
    }

    fn line(&mut self) -> Result<()> {
        for _ in 0..TEXT_MAX {
            if self.byte()? == b'\n' {
                return Ok(());
            }
        }
        bail!("a line is too long")
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, length: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes[..length]).context("the pickle is torn")?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).context("the pickle is torn")?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn pass(&mut self, length: usize) -> Result<()> {
        self.number(length).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// What Python's pickle makes of an expression.
    fn pickled(protocol: u32, expression: &str) -> Vec<u8> {
        let code = format!(
            "import pickle, sys\nclass P: pass\np = P()\np.__dict__ = {expression}\nsys.stdout.buffer.write(pickle.dumps(p if {protocol} > 3 else p.__dict__, {protocol}))"
        );
        let output = Command::new("python3").arg("-c").arg(code).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    type Pairs = Vec<(u32, Value, Value)>;

    fn pairs(bytes: &[u8]) -> Result<(u32, Pairs)> {
        let mut pairs = Vec::new();
        let root = read(bytes, &mut |n, key, value| {
            pairs.push((n, key, value));
            Ok(())
        })?;
        Ok((root, pairs))
    }

    #[test]
    fn what_python_writes_is_read() {
        let expression = "{'dimensionality': 3, 'id_to_label': {f'id{i}': i * 70000 for i in range(2500)}, 'max_seq_id': 2**40, \
                          'label_to_id': {i * 70000: f'id{i}' for i in range(2500)}, 'none': None, 'neg': -2**35, 'id_to_seq_id': {}}";
        for protocol in 2..=5 {
            let bytes = pickled(protocol, expression);
            let (root, found) = pairs(&bytes).unwrap();
            let of = |name: &str| {
                let one = found.iter().find(|(n, key, _)| *n == root && *key == Value::Text(name.into()));
                one.unwrap_or_else(|| panic!("{name} in protocol {protocol}")).2.clone()
            };
            assert_eq!(
                (of("max_seq_id"), of("neg"), of("none")),
                (Value::Number(1 << 40), Value::Number(-(1 << 35)), Value::Other)
            );
            for (map, sum) in [("id_to_label", 2500), ("label_to_id", 2500), ("id_to_seq_id", 0)] {
                let Value::Dictionary(n) = of(map) else { panic!("{map} is no dictionary") };
                assert_eq!(found.iter().filter(|(d, ..)| *d == n).count(), sum, "{map} in protocol {protocol}");
            }
            assert!(found.contains(&(
                found.iter().find(|p| p.1 == Value::Text("id2499".into())).unwrap().0,
                Value::Text("id2499".into()),
                Value::Number(2499 * 70000)
            )));
            for cut in [1, 2, bytes.len() / 2, bytes.len() - 3] {
                assert!(pairs(&bytes[..bytes.len() - cut]).is_err(), "torn by {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, pairs)) = pairs(&bytes) {
                prop_assert!(pairs.len() < 200);
            }
        }
    }
}
