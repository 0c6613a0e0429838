//! Every stage against a plain f64 implementation written from its definition, and the chain as a whole.

mod stateful;

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::candidates::Candidates;
use super::*;

/// A vocabulary of single characters and a few longer tokens.
struct Vocab(Vec<&'static str>);

impl Vocab {
    fn small() -> Vocab {
        Vocab(vec!["a", "b", "c", "d", "\n", "x\n", "ab", "*", "**", "<end>"])
    }
}

impl SamplerVocab for Vocab {
    fn n_vocab(&self) -> usize {
        self.0.len()
    }
    fn is_eog(&self, id: u32) -> bool {
        self.0[id as usize] == "<end>"
    }
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0[id as usize].as_bytes())
    }
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // Longest match first.
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let fits = self.0.iter().enumerate().filter(|(_, t)| rest.starts_with(**t));
            let (id, t) = fits.max_by_key(|(_, t)| t.len()).ok_or_else(|| Error::Tokenizer(text.into()))?;
            ids.push(id as u32);
            rest = &rest[t.len()..];
        }
        Ok(ids)
    }
}

/// A vocabulary of four tokens, of which the model must not generate the second.
struct Suppressing;

impl SamplerVocab for Suppressing {
    fn n_vocab(&self) -> usize {
        4
    }
    fn is_eog(&self, _: u32) -> bool {
        false
    }
    fn suppressed(&self) -> &[u32] {
        &[1]
    }
    fn token_bytes(&self, _: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(b"x")
    }
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Err(Error::Tokenizer(text.into()))
    }
}

/// A vocabulary of any size, for tests that need no texts.
struct Numbered(usize);

impl SamplerVocab for Numbered {
    fn n_vocab(&self) -> usize {
        self.0
    }
    fn is_eog(&self, _: u32) -> bool {
        false
    }
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        Cow::Owned(format!("<{id}>").into_bytes())
    }
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Err(Error::Tokenizer(text.into()))
    }
}

/// Reproducible logits with a long tail, no two equal.
fn logits(n: usize, seed: u32) -> Vec<f32> {
    let mut rng = rng::Mt19937::new(seed);
    (0..n).map(|_| ((rng.next_f64() + rng.next_f64() + rng.next_f64()) * 8.0 - 12.0) as f32).collect()
}

/// id -> probability by definition.
fn softmax(logits: impl IntoIterator<Item = (u32, f64)>) -> BTreeMap<u32, f64> {
    let all: Vec<(u32, f64)> = logits.into_iter().collect();
    let max = all.iter().map(|x| x.1).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = all.iter().map(|x| (x.1 - max).exp()).sum();
    all.into_iter().map(|(id, l)| (id, (l - max).exp() / sum)).collect()
}

fn numbered(logits: &[f32]) -> Vec<(u32, f64)> {
    logits.iter().enumerate().map(|(i, &l)| (i as u32, f64::from(l))).collect()
}

/// Most likely first.
fn ranked(p: &BTreeMap<u32, f64>) -> Vec<(u32, f64)> {
    let mut v: Vec<_> = p.iter().map(|(&id, &p)| (id, p)).collect();
    v.sort_by(|a, b| b.1.total_cmp(&a.1));
    v
}

fn renormalised(kept: &[(u32, f64)]) -> BTreeMap<u32, f64> {
    let sum: f64 = kept.iter().map(|x| x.1).sum();
    kept.iter().map(|&(id, p)| (id, p / sum)).collect()
}

/// Loads logits, runs `stage`, and compares what is left with `want`. Tokens at -inf count as absent.
fn expect(logits: &[f32], stage: impl FnOnce(&mut Candidates), want: &BTreeMap<u32, f64>, what: &str) {
    let mut c = Candidates::default();
    c.load(logits);
    stage(&mut c);
    c.softmax();
    // Below this an f32 probability is denormal or zero.
    let counts = |p: f64| p > 1e-30;
    let got: BTreeMap<u32, f64> = c.list().iter().map(|t| (t.id, f64::from(t.p))).filter(|t| counts(t.1)).collect();
    let want: BTreeMap<u32, f64> = want.iter().map(|(&id, &p)| (id, p)).filter(|t| counts(t.1)).collect();
    assert!(got.keys().eq(want.keys()), "{what}: kept {:?}, not {:?}", got.keys(), want.keys());
    for (id, p) in &want {
        assert!((got[id] - p).abs() < 1e-5, "{what}: token {id}: {} instead of {p}", got[id]);
    }
}

const SIZES: [usize; 4] = [2, 7, 300, 5000];

#[test]
fn top_k_keeps_the_most_likely() {
    for n in SIZES {
        let l = logits(n, 1);
        let all = ranked(&softmax(numbered(&l)));
        for k in [1, 2, 40, 4999] {
            expect(&l, |c| stages::top_k(c, k), &renormalised(&all[..n.min(k as usize)]), "top-k");
        }
        for k in [0, -1] {
            expect(&l, |c| stages::top_k(c, k), &softmax(numbered(&l)), "top-k off");
        }
    }
}

#[test]
fn top_p_keeps_the_nucleus() {
    for n in SIZES {
        let l = logits(n, 2);
        let all = ranked(&softmax(numbered(&l)));
        for (p, min_keep) in [(0.05, 0), (0.5, 0), (0.9, 0), (0.3, 5), (0.95, 0)] {
            let mut sum = 0.0;
            let reach = all.iter().position(|x| {
                sum += x.1;
                sum >= p
            });
            let keep = (reach.map_or(n, |i| i + 1)).max(min_keep).min(n);
            let want = renormalised(&all[..keep]);
            expect(&l, |c| stages::top_p(c, p as f32, min_keep), &want, "top-p");
            let after_top_k = |c: &mut Candidates| {
                stages::top_k(c, n as i32);
                stages::top_p(c, p as f32, min_keep);
            };
            expect(&l, after_top_k, &want, "top-p on a sorted list");
        }
        expect(&l, |c| stages::top_p(c, 1.0, 0), &softmax(numbered(&l)), "top-p off");
        expect(&l, |c| stages::top_p(c, 0.0, 0), &renormalised(&all[..1]), "top-p 0");
    }
}

#[test]
fn min_p_compares_with_the_best() {
    for n in SIZES {
        let l = logits(n, 3);
        let all = ranked(&softmax(numbered(&l)));
        for (p, min_keep) in [(0.05, 0), (0.5, 0), (1.0, 0), (0.9, 3)] {
            let fit = all.iter().filter(|x| x.1 >= p * all[0].1 * (1.0 - 1e-7)).count();
            let want = renormalised(&all[..fit.max(min_keep).min(n)]);
            expect(&l, |c| stages::min_p(c, p as f32, min_keep), &want, "min-p");
            let after_top_k = |c: &mut Candidates| {
                stages::top_k(c, n as i32);
                stages::min_p(c, p as f32, min_keep);
            };
            expect(&l, after_top_k, &want, "min-p on a sorted list");
        }
        expect(&l, |c| stages::min_p(c, 0.0, 0), &softmax(numbered(&l)), "min-p off");
    }
}

#[test]
fn typical_prefers_average_surprise() {
    for n in SIZES {
        let l = logits(n, 4);
        let all = softmax(numbered(&l));
        let entropy: f64 = all.values().map(|p| -p * p.ln()).sum();
        let mut order: Vec<(u32, f64)> = all.iter().map(|(&id, &p)| (id, p)).collect();
        order.sort_by(|a, b| (-a.1.ln() - entropy).abs().total_cmp(&(-b.1.ln() - entropy).abs()));
        for (p, min_keep) in [(0.2, 0), (0.6, 0), (0.1, 4)] {
            let mut sum = 0.0;
            let reach = order.iter().position(|x| {
                sum += x.1;
                sum > p
            });
            let keep = reach.map_or(n, |i| i + 1).max(min_keep).min(n);
            expect(&l, |c| stages::typical(c, p as f32, min_keep), &renormalised(&order[..keep]), "typical");
        }
    }
    // By hand: 0.6, 0.3, 0.1 have an entropy of 0.898; surprises 0.511, 1.204, 2.303: the second is nearest.
    let l = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
    expect(&l, |c| stages::typical(c, 0.2, 0), &BTreeMap::from([(1, 1.0)]), "typical by hand");
}

#[test]
fn top_n_sigma_masks_far_logits() {
    for n in SIZES {
        let mut l = logits(n, 5);
        if n > 10 {
            l[3] = f32::NEG_INFINITY; // stays out of the statistics
        }
        let finite: Vec<f64> = l.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).collect();
        let mean = finite.iter().sum::<f64>() / finite.len() as f64;
        let sd = (finite.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / finite.len() as f64).sqrt();
        let max = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for sigma in [0.5, 1.0, 2.0] {
            let kept: Vec<_> = numbered(&l).into_iter().filter(|x| x.1 >= max - sigma * sd).collect();
            expect(&l, |c| stages::top_n_sigma(c, sigma as f32), &softmax(kept), "top-n-sigma");
        }
        let all = numbered(&l).into_iter().filter(|x| x.1.is_finite());
        expect(&l, |c| stages::top_n_sigma(c, -1.0), &softmax(all), "top-n-sigma off");
    }
}

#[test]
fn temperature_scales_and_zero_is_greedy() {
    for n in SIZES {
        let l = logits(n, 6);
        for t in [0.3, 0.8, 1.0, 2.5] {
            let want = softmax(numbered(&l).into_iter().map(|(id, x)| (id, x / t)));
            expect(&l, |c| stages::temperature(c, t as f32), &want, "temperature");
        }
        let best = ranked(&softmax(numbered(&l)))[0].0;
        for t in [0.0, -1.0, 1e-40, f32::MIN_POSITIVE] {
            expect(&l, |c| stages::temperature(c, t), &BTreeMap::from([(best, 1.0)]), "temperature near 0");
        }
    }
    expect(
        &[1.0, 3.0, 3.0],
        |c| stages::temperature(c, 0.0),
        &BTreeMap::from([(1, 1.0)]),
        "a tie goes to the lower id",
    );
}

#[test]
fn dynamic_temperature_follows_the_entropy() {
    for n in SIZES {
        let l = logits(n, 7);
        let entropy: f64 = softmax(numbered(&l)).values().map(|p| -p * p.ln()).sum();
        for (t, range, exponent) in [(0.8, 0.5, 1.0), (0.3, 0.6, 2.0)] {
            let (low, high) = ((t - range as f64).max(0.0), t + range as f64);
            let dynamic = low + (high - low) * (entropy / (n as f64).ln()).powf(exponent);
            let want = softmax(numbered(&l).into_iter().map(|(id, x)| (id, x / dynamic)));
            let stage = |c: &mut Candidates| stages::dynamic_temperature(c, t as f32, range, exponent as f32);
            expect(&l, stage, &want, "dynamic temperature");
        }
    }
}

#[test]
fn xtc_removes_all_but_the_last_top_choice() {
    let l: Vec<f32> = [0.4f32, 0.3, 0.2, 0.06, 0.04].iter().map(|p| p.ln()).collect();
    let run = |probability, threshold, min_keep| {
        move |c: &mut Candidates| stages::xtc(c, probability, threshold, min_keep, &mut rng::Mt19937::new(1))
    };
    let tail = renormalised(&[(2, 0.2), (3, 0.06), (4, 0.04)]);
    let all = softmax(numbered(&l));
    expect(&l, run(1.0, 0.1, 0), &tail, "xtc");
    expect(&l, run(1.0, 0.35, 0), &all, "one top choice alone stays");
    expect(&l, run(1.0, 0.1, 4), &all, "min-keep");
    expect(&l, run(1.0, 0.51, 0), &all, "threshold above one half");
    expect(&l, run(0.0, 0.1, 0), &all, "probability 0");
    // The generator's first draw for seed 1 is 0.417.
    expect(&l, run(0.41, 0.1, 0), &all, "below the chance");
    expect(&l, run(0.42, 0.1, 0), &tail, "above the chance");
}

fn params() -> SamplerParams {
    SamplerParams { seed: 42, ..SamplerParams::default() }
}

#[test]
fn defaults_are_llama_cpps() {
    let p = SamplerParams::default();
    assert_eq!((p.top_k, p.top_p, p.min_p, p.typ_p, p.temp), (40, 0.95, 0.05, 1.0, 0.8));
    assert_eq!((p.seed, p.min_keep, p.top_n_sigma), (0xFFFF_FFFF, 0, -1.0));
    assert_eq!((p.xtc_probability, p.xtc_threshold), (0.0, 0.1));
    assert_eq!((p.dynatemp_range, p.dynatemp_exponent), (0.0, 1.0));
    assert_eq!((p.penalty_last_n, p.penalty_repeat, p.penalty_freq, p.penalty_present), (64, 1.0, 0.0, 0.0));
    assert_eq!((p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n), (0.0, 1.75, 2, 64));
    assert_eq!(p.dry_sequence_breakers, ["\n", ":", "\"", "*"]);
    assert_eq!((p.mirostat, p.mirostat_tau, p.mirostat_eta), (0, 5.0, 0.1));
    assert_eq!((p.adaptive_target, p.adaptive_decay), (-1.0, 0.9));
    let names: Vec<_> = p.samplers.iter().map(|k| k.name()).collect();
    let want = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature";
    assert_eq!(names.join(";"), want);
    assert_eq!(p.samplers.iter().map(|k| k.letter()).collect::<String>(), "edskypmxt");
    assert_eq!(SamplerKind::parse_names(want).unwrap(), p.samplers);
    assert_eq!(SamplerKind::parse_letters("edskypmxt").unwrap(), p.samplers);
    p.validate().unwrap();
}

#[test]
fn names_and_biases_parse() {
    use SamplerKind::*;
    assert_eq!(
        SamplerKind::parse_names("TOP-K; topp ;temp;nucleus;typ").unwrap(),
        [TopK, TopP, Temperature, TopP, TypicalP]
    );
    assert_eq!(SamplerKind::parse_names("").unwrap(), []);
    assert!(SamplerKind::parse_names("top_k;magic").unwrap_err().to_string().contains("`magic`"));
    assert!(SamplerKind::parse_letters("kz").unwrap_err().to_string().contains("`z`"));
    let bias = |s: &str| s.parse::<LogitBias>().map(|b| (b.token, b.bias));
    assert_eq!(bias("15043+1").unwrap(), (15043, 1.0));
    assert_eq!(bias("15043-0.5").unwrap(), (15043, -0.5));
    assert_eq!(bias("29905-inf").unwrap(), (29905, f32::NEG_INFINITY));
    assert_eq!(bias("7+1e-2").unwrap(), (7, 0.01));
    for wrong in ["", "15043", "+1", "-1+1", "15043+", "15043+-1", "15043+x", "15043+nan", "a+1", "4294967296+1"] {
        assert!(bias(wrong).unwrap_err().to_string().starts_with("--logit-bias"), "{wrong}");
    }
    assert_eq!(parse_seed("-1").unwrap(), RANDOM_SEED);
    assert_eq!(parse_seed("4294967295").unwrap(), RANDOM_SEED);
    assert_eq!(parse_seed("7").unwrap(), 7);
    for wrong in ["-2", "4294967296", "x", "1.5", ""] {
        assert!(parse_seed(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_range_is_checked_by_flag() {
    type Change = fn(&mut SamplerParams);
    let wrong: [(&str, Change); 24] = [
        ("--top-p", |p| p.top_p = 1.1),
        ("--top-p", |p| p.top_p = f32::NAN),
        ("--min-p", |p| p.min_p = -0.1),
        ("--xtc-probability", |p| p.xtc_probability = 2.0),
        ("--xtc-threshold", |p| p.xtc_threshold = -1.0),
        ("--typical", |p| p.typ_p = 1.5),
        ("--temp", |p| p.temp = f32::NAN),
        ("--temp", |p| p.temp = f32::INFINITY),
        ("--dynatemp-range", |p| p.dynatemp_range = -1.0),
        ("--dynatemp-exp", |p| p.dynatemp_exponent = f32::NAN),
        ("--repeat-penalty", |p| p.penalty_repeat = 0.0),
        ("--repeat-penalty", |p| p.penalty_repeat = f32::INFINITY),
        ("--frequency-penalty", |p| p.penalty_freq = f32::NAN),
        ("--presence-penalty", |p| p.penalty_present = f32::INFINITY),
        ("--repeat-last-n", |p| p.penalty_last_n = -2),
        ("--dry-penalty-last-n", |p| p.dry_penalty_last_n = -2),
        ("--dry-base", |p| p.dry_base = 0.5),
        ("--dry-allowed-length", |p| p.dry_allowed_length = -1),
        ("--mirostat", |p| p.mirostat = 3),
        ("--mirostat-ent", |p| p.mirostat_tau = -1.0),
        ("--mirostat-lr", |p| p.mirostat_eta = f32::NAN),
        ("--adaptive-target", |p| p.adaptive_target = 1.5),
        ("--adaptive-decay", |p| p.adaptive_decay = 1.0),
        ("--logit-bias", |p| p.logit_bias = vec![LogitBias { token: 9, bias: f32::NAN }]),
    ];
    for (flag, change) in wrong {
        let mut p = params();
        change(&mut p);
        let error = Sampler::new(&p, &Vocab::small(), 64).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.starts_with(flag), "{flag}: {error}");
    }
}

/// What the chain leaves, as id -> probability, by sampling many times.
fn frequencies(p: &SamplerParams, l: &[f32], n: u32) -> BTreeMap<u32, f64> {
    let mut s = Sampler::new(p, &Numbered(l.len()), 64).unwrap();
    let mut count = BTreeMap::new();
    for _ in 0..n {
        *count.entry(s.sample(l).unwrap()).or_insert(0u32) += 1;
    }
    count.into_iter().map(|(id, c)| (id, f64::from(c) / f64::from(n))).collect()
}

#[test]
fn the_default_chain_draws_by_its_distribution() {
    let l = logits(1000, 8);
    let top: Vec<_> = ranked(&softmax(numbered(&l)))[..40].to_vec();
    let mut sum = 0.0;
    let mut nucleus = ranked(&renormalised(&top));
    let end = nucleus.iter().position(|x| {
        sum += x.1;
        sum >= 0.95
    });
    nucleus.truncate(end.unwrap() + 1);
    let bar = 0.05 * nucleus[0].1;
    nucleus.retain(|x| x.1 >= bar);
    let want = softmax(nucleus.iter().map(|&(id, _)| (id, f64::from(l[id as usize]) / f64::from(0.8f32))));
    let n = 40_000;
    let got = frequencies(&params(), &l, n);
    assert!(got.keys().all(|id| want.contains_key(id)));
    for (id, p) in &want {
        let sigma = (p * (1.0 - p) / f64::from(n)).sqrt();
        let seen = got.get(id).copied().unwrap_or(0.0);
        assert!((seen - p).abs() < 5.0 * sigma + 1e-9, "token {id}: {seen} instead of {p}");
    }
}

#[test]
fn the_order_of_the_chain_counts() {
    // At temperature 0.1 the best token has 0.993 of the probability, at 1 only 0.38: top-p 0.9 after and before.
    let l = [1.0, 0.5, 0.0, -0.5];
    let base = SamplerParams { temp: 0.1, top_p: 0.9, ..params() };
    let hot_last = SamplerParams { samplers: SamplerKind::parse_letters("pt").unwrap(), ..base.clone() };
    let hot_first = SamplerParams { samplers: SamplerKind::parse_letters("tp").unwrap(), ..base };
    assert_eq!(frequencies(&hot_first, &l, 3000).len(), 1);
    assert!(frequencies(&hot_last, &l, 3000).len() > 1);
    // Without the temperature stage, the temperature is 1.
    let none = SamplerParams { samplers: vec![], temp: 0.0, ..params() };
    assert_eq!(frequencies(&none, &l, 3000).len(), 4);
}

#[test]
fn the_same_seed_draws_the_same() {
    let l = logits(500, 9);
    let draw = |seed, s: Option<Sampler>| {
        let p = SamplerParams { seed, top_k: 0, top_p: 1.0, min_p: 0.0, xtc_probability: 0.5, ..params() };
        let mut s = s.unwrap_or_else(|| Sampler::new(&p, &Numbered(500), 64).unwrap());
        let ids: Vec<u32> = (0..50).map(|_| s.sample(&l).unwrap()).collect();
        (ids, s)
    };
    let (first, mut s) = draw(1, None);
    assert_eq!(first, draw(1, None).0);
    assert_ne!(first, draw(2, None).0);
    s.reset();
    assert_eq!(first, draw(1, Some(s)).0);
    let random = || Sampler::new(&SamplerParams::default(), &Numbered(500), 64).unwrap().seed();
    let seeds = [random(), random(), random()];
    assert!(seeds.iter().all(|&s| s != RANDOM_SEED) && seeds[0] != seeds[1]);
}

#[test]
fn greedy_is_argmax_and_breaks_ties_low() {
    let p = SamplerParams { temp: 0.0, ..params() };
    let mut s = Sampler::new(&p, &Numbered(4), 64).unwrap();
    assert_eq!(s.sample(&[0.0, 5.0, 5.0, 1.0]).unwrap(), 1);
    assert_eq!(s.sample(&[f32::NAN, -7.0, f32::NEG_INFINITY, -8.0]).unwrap(), 1);
    assert_eq!(s.sample(&[0.0, f32::INFINITY, 3.0, f32::MAX]).unwrap(), 1);
}

#[test]
fn nothing_to_choose_from_is_an_error() {
    for mirostat in 0..=2 {
        let p = SamplerParams { mirostat, ..params() };
        let mut s = Sampler::new(&p, &Numbered(3), 64).unwrap();
        assert!(s.sample(&[f32::NAN; 3]).unwrap_err().to_string().contains("NaN"));
        assert!(s.sample(&[f32::NEG_INFINITY; 3]).unwrap_err().to_string().contains("-inf"));
        assert!(s.sample(&[]).is_err());
        assert_eq!(s.sample(&[f32::NAN, 0.0, f32::NEG_INFINITY]).unwrap(), 1);
    }
}

#[test]
fn biases_forbid_force_and_add() {
    let with = |bias: &str| SamplerParams { logit_bias: vec![bias.parse().unwrap()], temp: 0.0, ..params() };
    let pick = |p: &SamplerParams, l: &[f32]| Sampler::new(p, &Vocab::small(), 64).unwrap().sample(l).unwrap();
    let mut l = [0.0; 10];
    l[9] = 5.0;
    assert_eq!(pick(&with("9-inf"), &l), 0);
    assert_eq!(pick(&with("3+inf"), &l), 3);
    assert_eq!(pick(&with("3+5.5"), &l), 3);
    assert_eq!(pick(&with("3+4.5"), &l), 9);
    let p = SamplerParams { ignore_eos: true, temp: 0.0, ..params() };
    assert_eq!(pick(&p, &l), 0);
    // A forbidden token stays forbidden whatever else is added to it.
    let both =
        SamplerParams { logit_bias: vec!["9-inf".parse().unwrap(), "9+inf".parse().unwrap()], temp: 0.0, ..params() };
    assert_eq!(pick(&both, &l), 0);
}

#[test]
fn suppressed_tokens_are_never_chosen() {
    let p = SamplerParams { temp: 0.0, ..params() };
    let biased = SamplerParams { logit_bias: vec!["1+inf".parse().unwrap()], ..p.clone() };
    for p in [p, biased] {
        let mut s = Sampler::new(&p, &Suppressing, 64).unwrap();
        assert_eq!(s.sample(&[0.0, 9.0, 1.0, 0.5]).unwrap(), 2);
    }
}

/// Whether there is such a token is up to the model.
#[test]
fn a_bias_of_a_token_that_there_is_not() {
    let p = SamplerParams { logit_bias: vec![LogitBias { token: 10, bias: 1.0 }], ..params() };
    let error = Sampler::new(&p, &Vocab::small(), 64).err();
    assert!(matches!(&error, Some(Error::Impossible(what)) if what.contains("10 tokens")), "{error:?}");
}

#[test]
fn the_chain_describes_itself() {
    let s = Sampler::new(&params(), &Numbered(9), 64).unwrap();
    let want = "logits -> top_k 40 -> top_p 0.95 -> min_p 0.05 -> temperature 0.8 -> draw";
    assert_eq!(s.describe_chain(), want);
    let p = SamplerParams { mirostat: 2, ..params() };
    let s = Sampler::new(&p, &Numbered(9), 64).unwrap();
    assert_eq!(s.describe_chain(), "logits -> temperature 0.8 -> mirostat 2 (ent 5, lr 0.1)");
}

#[test]
fn a_large_vocabulary_leaves_a_short_list() {
    let l = logits(262_144, 13);
    let mut s = Sampler::new(&params(), &Numbered(l.len()), 64).unwrap();
    s.sample(&l).unwrap();
    assert!(s.candidates.list().len() <= 40);
    assert!(s.candidates.list().capacity() < 1024, "the default chain sorted more than it needs");
}
