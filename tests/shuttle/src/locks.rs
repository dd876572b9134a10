//! The part of `parking_lot` that the log uses, on the scheduler's locks. Each lock is two: one of the
//! scheduler's, which decides who goes on, and a real one, never contended, which holds the data.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

type Gate<'a> = shuttle::sync::MutexGuard<'a, ()>;

pub struct Mutex<T> {
    gate: shuttle::sync::Mutex<()>,
    data: real_locks::Mutex<T>,
}

/// The data goes before the gate opens: fields are dropped in this order.
pub struct MutexGuard<'a, T> {
    data: Option<real_locks::MutexGuard<'a, T>>,
    gate: Option<Gate<'a>>,
    mutex: &'a Mutex<T>,
}

impl<T> MutexGuard<'_, T> {
    /// Who is next is the scheduler's choice here, as ever.
    pub fn unlock_fair(guard: Self) {
        drop(guard);
    }
}

impl<T> Mutex<T> {
    pub fn new(data: T) -> Mutex<T> {
        Mutex { gate: shuttle::sync::Mutex::new(()), data: real_locks::Mutex::new(data) }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard { data: Some(self.data.lock()), gate: Some(gate), mutex: self }
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let gate = self.gate.try_lock().ok()?;
        Some(MutexGuard { data: Some(self.data.lock()), gate: Some(gate), mutex: self })
    }

    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}

const HELD: &str = "a guard holds its lock but while it waits";

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "only Condvar::wait takes the data, and gives it back")]
    fn deref(&self) -> &T {
        self.data.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[expect(clippy::expect_used, reason = "only Condvar::wait takes the data, and gives it back")]
    fn deref_mut(&mut self) -> &mut T {
        self.data.as_mut().expect(HELD)
    }
}

#[derive(Default)]
pub struct Condvar(shuttle::sync::Condvar);

/// Whether the wait ended by time. It never does.
pub struct WaitTimeoutResult;

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub fn new() -> Condvar {
        Condvar::default()
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.data = None;
        if let Some(gate) = guard.gate.take() {
            let gate = self.0.wait(gate).unwrap_or_else(PoisonError::into_inner);
            guard.gate = Some(gate);
        }
        guard.data = Some(guard.mutex.data.lock());
    }

    /// Without the timeout: who relies on it to be woken hangs here, and is found.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    pub fn notify_one(&self) -> bool {
        self.0.notify_one();
        true
    }

    pub fn notify_all(&self) -> usize {
        self.0.notify_all();
        0
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

pub struct RwLock<T> {
    gate: shuttle::sync::RwLock<()>,
    data: real_locks::RwLock<T>,
}

pub struct RwLockReadGuard<'a, T> {
    data: real_locks::RwLockReadGuard<'a, T>,
    gate: shuttle::sync::RwLockReadGuard<'a, ()>,
}

pub struct MappedRwLockReadGuard<'a, T> {
    data: real_locks::MappedRwLockReadGuard<'a, T>,
    _gate: shuttle::sync::RwLockReadGuard<'a, ()>,
}

pub struct RwLockWriteGuard<'a, T> {
    data: real_locks::RwLockWriteGuard<'a, T>,
    _gate: shuttle::sync::RwLockWriteGuard<'a, ()>,
}

impl<T> RwLock<T> {
    pub fn new(data: T) -> RwLock<T> {
        RwLock { gate: shuttle::sync::RwLock::new(()), data: real_locks::RwLock::new(data) }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        RwLockReadGuard { data: self.data.read(), gate }
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        RwLockWriteGuard { data: self.data.write(), _gate: gate }
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> RwLock<T> {
        RwLock::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}

impl<'a, T> RwLockReadGuard<'a, T> {
    pub fn try_map<U>(
        guard: Self,
        part: impl FnOnce(&T) -> Option<&U>,
    ) -> Result<MappedRwLockReadGuard<'a, U>, Self> {
        let gate = guard.gate;
        match real_locks::RwLockReadGuard::try_map(guard.data, part) {
            Ok(data) => Ok(MappedRwLockReadGuard { data, _gate: gate }),
            Err(data) => Err(RwLockReadGuard { data, gate }),
        }
    }

    pub fn map<U>(guard: Self, part: impl FnOnce(&T) -> &U) -> MappedRwLockReadGuard<'a, U> {
        let data = real_locks::RwLockReadGuard::map(guard.data, part);
        MappedRwLockReadGuard { data, _gate: guard.gate }
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> Deref for MappedRwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
