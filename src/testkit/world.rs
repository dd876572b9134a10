//! A store under test beside the model of what must be in it.

use super::model::Model;
use super::report::{Outcome, Trouble, fail};
use super::store::{Batch, Factory, Failure, LogStore};
use crate::log::{Entry, GroupId};

/// An entry whose data says whose it is, padded to `len` bytes.
pub(super) fn entry(group: GroupId, index: u64, term: u64, len: usize) -> Entry {
    let mut data = format!("{group}/{index}@{term};").into_bytes();
    if len > data.len() {
        data.resize(len, (index % 251) as u8);
    }
    Entry { index, term, kind: (index % 3) as u8, data: data.into() }
}

/// Such entries, all of one term.
pub(super) fn entries(group: GroupId, range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(group, index, term, 0)).collect()
}

/// A small generator (xorshift*), so that a run can be repeated.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides.max(1)
    }
}

/// One store under test and its model.
pub(super) struct World<'a> {
    pub factory: &'a dyn Factory,
    pub name: String,
    store: Option<Box<dyn LogStore>>,
    pub model: Model,
}

impl<'a> World<'a> {
    pub fn new(factory: &'a dyn Factory, name: &str) -> Outcome<World<'a>> {
        let store = Some(factory.open(name)?);
        Ok(World { factory, name: name.to_owned(), store, model: Model::default() })
    }

    pub fn store(&self) -> Outcome<&dyn LogStore> {
        match &self.store {
            Some(store) => Ok(store.as_ref()),
            None => Err(Trouble::Failed("the store is not open".into())),
        }
    }

    /// Writes, here and in the model.
    pub fn write(&mut self, batch: Batch) -> Outcome {
        self.store()?.write(&batch)?;
        self.model.apply(&batch);
        Ok(())
    }

    /// Writes what must be refused without a trace.
    pub fn write_refused(&mut self, batch: Batch, what: &str) -> Outcome {
        match self.store()?.write(&batch) {
            Err(Failure::Refused(_)) => self.check(),
            Ok(()) => fail!("{what} was taken"),
            Err(other) => fail!("{what}: expected a refusal, not: {other}"),
        }
    }

    pub fn sync(&self) -> Outcome {
        Ok(self.store()?.sync()?)
    }

    pub fn purge(&self) -> Outcome {
        Ok(self.store()?.purge()?)
    }

    pub fn check(&self) -> Outcome {
        self.model.check(self.store()?)
    }

    /// The process ends without a word.
    pub fn drop_store(&mut self) {
        self.store = None;
    }

    pub fn close(&mut self) -> Outcome {
        match self.store.take() {
            Some(store) => Ok(store.close()?),
            None => Ok(()),
        }
    }

    pub fn open(&mut self) -> Outcome {
        self.store = Some(self.factory.open(&self.name)?);
        Ok(())
    }

    /// Closes, opens, and compares.
    pub fn reopen(&mut self) -> Outcome {
        self.close()?;
        self.open()?;
        self.check()
    }
}
