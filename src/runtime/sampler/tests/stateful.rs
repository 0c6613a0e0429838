//! The samplers that look back: penalties, DRY, mirostat, adaptive-p.

use super::*;

#[test]
fn penalties_count_within_their_window() {
    let p = SamplerParams {
        penalty_last_n: 3,
        penalty_repeat: 2.0,
        penalty_freq: 0.25,
        penalty_present: 0.5,
        samplers: vec![SamplerKind::Penalties],
        ..params()
    };
    let mut s = Sampler::new(&p, &Numbered(5), 64).unwrap();
    for id in [0, 1, 2, 1, 1, 99] {
        s.accept(id); // the window holds 2, 1, 1: the id out of range does not count
    }
    let penalties = s.penalties.as_ref().unwrap();
    let mut c = Candidates::default();
    c.load(&[4.0, 4.0, -4.0, 4.0, -4.0]);
    penalties.apply(&mut c, &p);
    // 1: 4 / 2 - (2 * 0.25 + 0.5); 2: -4 * 2 - (0.25 + 0.5)
    assert_eq!(c.logits().collect::<Vec<_>>(), [4.0, 1.0, -8.75, 4.0, -4.0]);
    // Late in a chain, on a list, the same.
    c.load(&[4.0, 4.0, -4.0, 4.0, -4.0]);
    c.list();
    penalties.apply(&mut c, &p);
    assert_eq!(c.logits().collect::<Vec<_>>(), [4.0, 1.0, -8.75, 4.0, -4.0]);
    s.reset();
    c.load(&[4.0; 5]);
    s.penalties.as_ref().unwrap().apply(&mut c, &p);
    assert_eq!(c.logits().collect::<Vec<_>>(), [4.0; 5]);
}

#[test]
fn penalty_windows_match_a_plain_count() {
    let mut rng = rng::Mt19937::new(11);
    for (last_n, n_ctx, window) in [(1, 64, 1), (7, 64, 7), (-1, 20, 20)] {
        let p = SamplerParams { penalty_last_n: last_n, penalty_freq: 1.0, ..params() };
        let mut s = Sampler::new(&p, &Numbered(6), n_ctx).unwrap();
        let mut history = Vec::new();
        for _ in 0..200 {
            let id = rng.next_u32() % 6;
            s.accept(id);
            history.push(id);
            let recent = &history[history.len().saturating_sub(window)..];
            let mut c = Candidates::default();
            c.load(&[0.0; 6]);
            s.penalties.as_ref().unwrap().apply(&mut c, &p);
            let want: Vec<f32> = (0..6).map(|t| -(recent.iter().filter(|&&x| x == t).count() as f32)).collect();
            assert_eq!(c.logits().collect::<Vec<_>>(), want);
        }
    }
}

/// DRY by definition: for each earlier place, how many tokens before it equal those at the end.
fn dry_by_definition(history: &[u32], allowed: usize, limit: usize, p: &SamplerParams, n: usize) -> Vec<f32> {
    let mut longest = vec![0usize; n];
    for (at, &next) in history.iter().enumerate() {
        let same = history[..at].iter().rev().zip(history.iter().rev()).take_while(|(a, b)| a == b).count();
        longest[next as usize] = longest[next as usize].max(same.min(limit));
    }
    let penalty =
        |&l: &usize| if l >= allowed { p.dry_multiplier * p.dry_base.powi((l - allowed) as i32) } else { 0.0 };
    longest.iter().map(|l| -penalty(l)).collect()
}

fn dry_penalties(p: &SamplerParams, vocab: &impl SamplerVocab, history: &[u32]) -> Vec<f32> {
    let mut s = Sampler::new(p, vocab, 64).unwrap();
    history.iter().for_each(|&id| s.accept(id));
    let mut c = Candidates::default();
    c.load(&vec![0.0; vocab.n_vocab()]);
    s.dry.as_mut().unwrap().apply(&mut c, p);
    c.logits().collect()
}

#[test]
fn dry_matches_its_definition() {
    let mut rng = rng::Mt19937::new(12);
    for allowed in [1, 2, 4] {
        let p = SamplerParams {
            dry_multiplier: 0.8,
            dry_allowed_length: allowed,
            dry_penalty_last_n: 40,
            dry_sequence_breakers: vec![],
            ..params()
        };
        for length in 0..120 {
            let history: Vec<u32> = (0..length).map(|_| rng.next_u32() % 3).collect();
            let recent = &history[history.len().saturating_sub(40)..];
            let want = if recent.len() <= allowed as usize {
                vec![0.0; 3]
            } else {
                dry_by_definition(recent, allowed as usize, usize::MAX, &p, 3)
            };
            assert_eq!(dry_penalties(&p, &Numbered(3), &history), want, "{history:?}");
        }
    }
}

#[test]
fn dry_stops_at_breakers() {
    let dry = |breakers: &[&str]| SamplerParams {
        dry_multiplier: 1.0,
        dry_base: 2.0,
        dry_penalty_last_n: -1,
        dry_sequence_breakers: breakers.iter().map(|b| b.to_string()).collect(),
        ..params()
    };
    let v = Vocab::small();
    // a b c d ... a b c: `d` would make it four; 2 ^ (3 - 2).
    let plain = [0, 1, 2, 3, 0, 1, 2];
    assert_eq!(dry_penalties(&dry(&[]), &v, &plain)[3], -2.0);
    // A line break two tokens from the end leaves two tokens that count; three before the end, all three.
    let broken = [0, 4, 1, 2, 3, 0, 4, 1, 2];
    assert_eq!(dry_penalties(&dry(&[]), &v, &broken)[3], -4.0);
    assert_eq!(dry_penalties(&dry(&["\n"]), &v, &broken)[3], -1.0);
    // The token `x\n` contains the breaker.
    let contained = [0, 5, 1, 2, 3, 0, 5, 1, 2];
    assert_eq!(dry_penalties(&dry(&["\n"]), &v, &contained)[3], -1.0);
    // A breaker of several tokens, beginning inside `ab`: b + * (token 7) breaks, `ab` alone does not.
    let split = [0, 6, 7, 2, 2, 3, 0, 6, 7, 2, 2];
    assert_eq!(dry_penalties(&dry(&["b*"]), &v, &split)[3], -1.0);
    assert_eq!(dry_penalties(&dry(&["b\n"]), &v, &split)[3], -8.0);
    // A token that is itself a breaker is never penalised.
    let to_breaker = [0, 1, 2, 4, 0, 1, 2];
    assert_eq!(dry_penalties(&dry(&[]), &v, &to_breaker)[4], -2.0);
    assert_eq!(dry_penalties(&dry(&["\n"]), &v, &to_breaker)[4], 0.0);
    let error = Sampler::new(&dry(&[""]), &v, 64).err().unwrap().to_string();
    assert!(error.starts_with("--dry-sequence-breaker"), "{error}");
}

#[test]
fn dry_stays_finite() {
    let p = SamplerParams {
        dry_multiplier: 1.0,
        dry_base: 1e6,
        dry_penalty_last_n: 5000,
        dry_sequence_breakers: vec![],
        ..params()
    };
    let penalty = dry_penalties(&p, &Numbered(2), &vec![0; 5000]);
    assert!(penalty[0].is_finite() && penalty[0] < -1e30 && penalty[1] == 0.0, "{penalty:?}");
}

#[test]
fn mirostat_holds_the_surprise_at_its_target() {
    // Zipf's law over 5000 tokens: surprise between 3.2 bits (the first) and 15.
    let l: Vec<f32> = (0..5000).map(|i| -((i + 1) as f32).ln()).collect();
    let p_true = softmax(numbered(&l));
    for version in [1, 2] {
        for tau in [4.0f32, 6.0] {
            let p = SamplerParams { mirostat: version, mirostat_tau: tau, temp: 1.0, ..params() };
            let mut s = Sampler::new(&p, &Numbered(5000), 64).unwrap();
            let mut sum = 0.0;
            let mut support = 0.0;
            for step in 0..4000 {
                let m = s.mirostat.as_mut().unwrap();
                let mut c = Candidates::default();
                c.load(&l);
                let i = m.choose(&mut c, &mut s.rng).unwrap();
                if step >= 1000 {
                    // The controlled quantity: surprise within the truncated distribution.
                    sum -= f64::from(c.list()[i].p).log2();
                    support += c.list().iter().map(|t| p_true[&t.id]).sum::<f64>();
                }
            }
            let mean = sum / 3000.0;
            assert!((mean - f64::from(tau)).abs() < 0.15, "version {version}, tau {tau}: {mean}");
            assert!(support / 3000.0 < 0.99, "version {version} never truncated");
        }
    }
}

#[test]
fn mirostat_survives_flat_and_single_candidates() {
    for version in [1, 2] {
        for temp in [0.0, 0.8] {
            let p = SamplerParams { mirostat: version, temp, ..params() };
            let mut s = Sampler::new(&p, &Numbered(50), 64).unwrap();
            for _ in 0..200 {
                assert!(s.sample(&[1.0; 50]).unwrap() < 50);
            }
            let mut one = [f32::NEG_INFINITY; 50];
            one[7] = 1.0;
            assert_eq!(s.sample(&one).unwrap(), 7);
        }
    }
}

#[test]
fn adaptive_p_steers_to_its_target() {
    let l: Vec<f32> = [0.5f32, 0.25, 0.12, 0.06, 0.04, 0.03].iter().map(|p| p.ln()).collect();
    let mean = |target| {
        let p = SamplerParams { adaptive_target: target, samplers: vec![SamplerKind::AdaptiveP], ..params() };
        let mut s = Sampler::new(&p, &Numbered(6), 64).unwrap();
        let mut sum = 0.0;
        for _ in 0..4000 {
            let id = s.sample(&l).unwrap();
            s.accept(id);
            sum += f64::from(l[id as usize]).exp();
        }
        sum / 4000.0
    };
    assert!((mean(0.4) - 0.4).abs() < 0.05, "{}", mean(0.4));
    assert!((mean(0.15) - 0.15).abs() < 0.05, "{}", mean(0.15));
    // Negative: a plain draw, whose expected probability is the sum of the squares.
    assert!((mean(-1.0) - 0.335).abs() < 0.02, "{}", mean(-1.0));
}
