//! Lists of numbers on the command line, in `llama-bench`'s notation.

use crate::cli::error::CliError;

/// More values than anybody wants to wait for; a larger range is a slip of the finger.
const MAX_VALUES: usize = 10_000;

/// The numbers of all `values`: `8`, `1,2,4`, `1-4`, `128-512+128`, `512-4096*2`.
pub fn numbers(flag: &str, values: &[String]) -> Result<Vec<usize>, CliError> {
    let mut all = Vec::new();
    for item in values.iter().flat_map(|v| v.split(',')) {
        range(item, &mut all).ok_or_else(|| {
            CliError::usage(format!(
                "{flag} {item}: expected a number, or a range such as 1-4, 128-512+128 or 512-4096*2"
            ))
        })?;
    }
    Ok(all)
}

fn range(item: &str, all: &mut Vec<usize>) -> Option<()> {
    let number = |s: &str| s.parse::<u32>().ok().map(|n| n as usize);
    let Some((first, rest)) = item.split_once('-') else {
        all.push(number(item)?);
        return Some(());
    };
    let (last, step, factor) = match (rest.split_once('+'), rest.split_once('*')) {
        (Some((last, step)), _) => (number(last)?, number(step)?, 1),
        (None, Some((last, factor))) => (number(last)?, 0, number(factor)?),
        (None, None) => (number(rest)?, 1, 1),
    };
    let (mut n, start) = (number(first)?, all.len());
    while n <= last {
        all.push(n);
        let next = n.checked_mul(factor)?.checked_add(step)?;
        if next <= n || all.len() - start > MAX_VALUES {
            return None;
        }
        n = next;
    }
    (all.len() > start).then_some(())
}

/// Pairs such as `512,128`.
pub fn pairs(flag: &str, values: &[String]) -> Result<Vec<(usize, usize)>, CliError> {
    let pair = |value: &String| {
        let (a, b) = value.split_once(',')?;
        Some((a.parse::<u32>().ok()? as usize, b.parse::<u32>().ok()? as usize)).filter(|&(a, b)| a + b > 0)
    };
    let parse = |value| {
        pair(value).ok_or_else(|| CliError::usage(format!("{flag} {value}: expected two numbers, such as 512,128")))
    };
    values.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(s: &str) -> Option<Vec<usize>> {
        numbers("-p", &[s.to_owned()]).ok()
    }

    #[test]
    fn lists_and_ranges() {
        assert_eq!(list("512"), Some(vec![512]));
        assert_eq!(list("1,2,0"), Some(vec![1, 2, 0]));
        assert_eq!(list("1-4"), Some(vec![1, 2, 3, 4]));
        assert_eq!(list("128-512+128,7"), Some(vec![128, 256, 384, 512, 7]));
        assert_eq!(list("512-5000*2"), Some(vec![512, 1024, 2048, 4096]));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for bad in ["", "x", "4-1", "1-4+0", "1-4*1", "0-8*2", "-1", "1-", "1-99999999", "5000000000"] {
            assert_eq!(list(bad), None, "{bad}");
        }
        let pair = |s: &str| pairs("-pg", &[s.to_owned()]).ok();
        assert_eq!(pair("512,128"), Some(vec![(512, 128)]));
        for bad in ["512", "512,", "0,0", "a,b", "1,2,3"] {
            assert_eq!(pair(bad), None, "{bad}");
        }
    }
}
