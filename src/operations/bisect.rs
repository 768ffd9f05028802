//! Bisection: the last snapshot at which a check passes, found by restores in log₂ steps.
//!
//! It takes the check to pass up to some snapshot and to fail from then on. Where it goes back and forth, one of the changes is found.

use anyhow::Result;

/// Finds the last of `count` points that is good, asking `is_good` for as few as possible; `None` if the first is bad already.
/// The order of asking: the newest, the oldest, then the middle of what is left.
pub fn search(count: usize, mut is_good: impl FnMut(usize) -> Result<bool>) -> Result<Option<usize>> {
    if count == 0 {
        return Ok(None);
    }
    if is_good(count - 1)? {
        return Ok(Some(count - 1));
    }
    if count == 1 || !is_good(0)? {
        return Ok(None);
    }
    let (mut good, mut bad) = (0, count - 1);
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        if is_good(middle)? { good = middle } else { bad = middle }
    }
    Ok(Some(good))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_boundary_is_found_in_few_steps() {
        for count in 0..40_usize {
            for good in 0..=count {
                let mut asked = 0;
                let found = search(count, |n| {
                    asked += 1;
                    Ok(n < good)
                });
                assert_eq!(found.unwrap(), good.checked_sub(1), "{good} of {count}");
                assert!(asked <= 2 + count.max(1).ilog2() as usize + 1, "{asked} for {count}");
            }
        }
    }

    #[test]
    fn a_point_that_cannot_be_asked_is_an_error() {
        assert!(search(3, |_| anyhow::bail!("no room")).is_err());
    }
}
