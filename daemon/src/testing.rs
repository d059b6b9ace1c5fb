//! Switches for tests: another medium in the place of the store's folder, panics put in on purpose, and parsers to be fed anything.

use std::convert::Infallible;
use std::sync::Arc;
#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU32, Ordering};

use disk_tier::io::Medium;

#[cfg(feature = "testing")]
pub mod parsers;

#[cfg(feature = "testing")]
pub use crate::server::serve_with;

/// Where a planted panic strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// The thread that keeps time and scrubs.
    Keeper = 1,
    /// The thread that takes in what the disk ends.
    DiskEnds = 2,
    /// The thread that accepts connections.
    Accept = 4,
    /// The runtime of the statistics endpoint.
    Http = 8,
    /// The thread that touches memory ahead of its use.
    Toucher = 128,
    /// One connection's thread, with a request read and not yet performed.
    Session = 16,
    /// One connection's thread, with a block reserved and its image not yet copied out of staging memory.
    Commit = 64,
    /// No panic: the end of a connection is not noticed, and what it held stays.
    HangUp = 32,
}

/// Panics that were asked for and have not struck yet. Clones share them; without the feature there are none.
#[derive(Clone, Debug, Default)]
pub struct Planted {
    #[cfg(feature = "testing")]
    points: Arc<AtomicU32>,
}

impl Planted {
    /// Whoever comes by this point next panics, once.
    #[cfg(feature = "testing")]
    pub fn arm(&self, point: Point) {
        self.points.fetch_or(point as u32, Ordering::SeqCst);
    }

    /// Panics if it was asked for.
    pub(crate) fn strike(&self, point: Point) {
        assert!(!self.is_due(point), "a planted panic: {point:?}");
    }

    /// Panics once it was asked for; never ends otherwise.
    pub(crate) async fn struck(&self, point: Point) -> Infallible {
        loop {
            self.strike(point);
            #[cfg(feature = "testing")]
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            #[cfg(not(feature = "testing"))]
            std::future::pending::<()>().await;
        }
    }

    /// True once for each time that it was asked for.
    #[cfg(feature = "testing")]
    pub(crate) fn is_due(&self, point: Point) -> bool {
        self.points.fetch_and(!(point as u32), Ordering::SeqCst) & point as u32 != 0
    }

    #[cfg(not(feature = "testing"))]
    pub(crate) fn is_due(&self, _point: Point) -> bool {
        false
    }
}

/// How a daemon under test differs from one in use.
#[derive(Clone, Default)]
pub struct Testing {
    /// In the place of the store's folder, which is then not looked at.
    pub medium: Option<Arc<dyn Medium>>,
    /// Where it is to panic.
    pub planted: Planted,
}
