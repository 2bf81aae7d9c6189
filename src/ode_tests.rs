//! Solvers against known solutions, their orders, and failure modes.

use super::*;

/// dx/dt = A(t) x, a rotation with growth at a rate given by the row; the integral is that of the divergence.
fn spiral(pace: &'static [f64]) -> impl FnMut(Stage) {
    move |stage| {
        for (i, &row) in stage.rows.iter().enumerate() {
            let (p, t) = (pace[row], stage.t[i]);
            let (x, y) = (stage.x[2 * i], stage.x[2 * i + 1]);
            stage.dx[2 * i] = p * (t.cos() * x - 2.0 * y);
            stage.dx[2 * i + 1] = p * (2.0 * x + t.cos() * y);
            stage.rate.iter_mut().skip(i).take(1).for_each(|r| *r = 2.0 * p * t.cos());
        }
    }
}

fn spiral_exact(pace: f64, [start, end]: [f64; 2], x: [f64; 2]) -> ([f64; 2], f64) {
    let growth = pace * (end.sin() - start.sin());
    let (sin, cos) = (2.0 * pace * (end - start)).sin_cos();
    let turned = [cos * x[0] - sin * x[1], sin * x[0] + cos * x[1]];
    (turned.map(|v| growth.exp() * v), 2.0 * growth)
}

fn error_of(method: Method, span: [f64; 2]) -> f64 {
    let (mut x, mut integral) = (vec![0.8, -0.3], vec![0.5]);
    let reports = integrate(&method, span, 2, &mut x, &mut integral, &mut spiral(&[1.0]));
    assert_eq!(reports[0].end, End::Done);
    let (exact, growth) = spiral_exact(1.0, span, [0.8, -0.3]);
    (x[0] - exact[0]).abs().max((x[1] - exact[1]).abs()).max((integral[0] - 0.5 - growth).abs())
}

#[test]
fn fixed_steps_converge_with_their_order() {
    for span in [[0.0, 1.5], [1.5, 0.2]] {
        for (method, order) in
            [((|steps| Method::Euler { steps }) as fn(usize) -> Method, 1.0), (|steps| Method::Rk4 { steps }, 4.0)]
        {
            let (coarse, fine) = (error_of(method(40), span), error_of(method(80), span));
            let found = (coarse / fine).log2();
            assert!((found - order).abs() < 0.2, "order {found} instead of {order}");
        }
    }
}

#[test]
fn adapted_steps_keep_the_tolerance() {
    for (points, span) in [(0, [0.0, 3.0]), (0, [3.0, -1.0]), (3, [0.0, 3.0]), (3, [3.0, -1.0])] {
        let at = |tolerance| {
            let (absolute, relative, log_density) = (tolerance, tolerance, tolerance);
            let quadrature = points;
            error_of(Method::DormandPrince { absolute, relative, log_density, quadrature, max_steps: 10_000 }, span)
        };
        assert!(at(1e-6) < 1e-4, "{}", at(1e-6));
        assert!(at(1e-10) < 1e-8, "{}", at(1e-10));
        assert!(at(1e-10) < 1e-2 * at(1e-6));
    }
}

#[test]
fn a_tight_tolerance_of_the_integral_alone_is_kept() {
    let run = |log_density| {
        let method =
            Method::DormandPrince { absolute: 0.1, relative: 0.1, log_density, quadrature: 0, max_steps: 10_000 };
        let (mut x, mut integral) = (vec![0.0], vec![0.0]);
        // x is constant: only the integral can require short steps
        let reports = integrate(&method, [0.0, 2.0], 1, &mut x, &mut integral, &mut |stage: Stage| {
            stage.dx.fill(0.0);
            stage.rate.iter_mut().zip(stage.t).for_each(|(r, t)| *r = (8.0 * t).sin());
        });
        ((integral[0] - (1.0 - 16f64.cos()) / 8.0).abs(), reports[0].accepted)
    };
    let ((loose, few), (tight, many)) = (run(1e-2), run(1e-10));
    assert!(tight < 1e-8 && tight < loose && many > 2 * few, "{loose} {few} {tight} {many}");
}

/// Integral of a rate along x = 1 + t³ − t from 0 to 2, where the fourth-order continuous extension is exact.
fn along_a_cubic(quadrature: usize, rate: impl Fn(f64, f64) -> f64) -> f64 {
    let method = Method::DormandPrince { absolute: 1e9, relative: 0.0, log_density: 1e9, quadrature, max_steps: 9 };
    let (mut x, mut integral) = (vec![1.0], vec![0.0]);
    integrate(&method, [0.0, 2.0], 1, &mut x, &mut integral, &mut |stage: Stage| {
        stage.dx[0] = 3.0 * stage.t[0] * stage.t[0] - 1.0;
        stage.rate.iter_mut().for_each(|r| *r = rate(stage.t[0], stage.x[0]));
    });
    integral[0]
}

#[test]
fn quadratures_are_exact_for_polynomials_along_the_path() {
    for points in 1..GAUSS_LEGENDRE.len() as i32 {
        for power in 0..2 * points {
            let found = along_a_cubic(points as usize, |t, _| t.powi(power));
            let exact = 2f64.powi(power + 1) / f64::from(power + 1);
            assert!((found / exact - 1.0).abs() < 1e-12, "{points} points, t^{power}: {found} for {exact}");
        }
    }
    let found = along_a_cubic(3, |t, x| t * t * x);
    assert!((found - (8.0 / 3.0 + 64.0 / 6.0 - 4.0)).abs() < 1e-12, "{found}");
}

#[test]
fn a_quadrature_asks_for_the_integrand_only_at_its_points() {
    let method = |quadrature| Method::DormandPrince {
        absolute: 1e-5,
        relative: 1e-5,
        log_density: 1e-4,
        quadrature,
        max_steps: 100,
    };
    let mut calls = 0;
    let (mut x, mut integral) = (vec![0.8, -0.3], vec![0.0]);
    let report = integrate(&method(2), [0.0, 3.0], 2, &mut x, &mut integral, &mut |stage: Stage| {
        calls += stage.rate.len();
        spiral(&[1.0])(stage);
    });
    assert_eq!(calls, 2 * report[0].accepted);
    let report = integrate(&method(3), [0.0, 1.0], 1, &mut [0.5], &mut [0.0], &mut |stage: Stage| {
        stage.dx.fill(1.0);
        stage.rate.fill(f64::NAN);
    });
    assert_eq!(report[0].end, End::NonFinite);
}

#[test]
fn nothing_is_evaluated_outside_the_span_and_the_end_is_hit_exactly() {
    // the right-hand side has a pole just beyond the end, which an overshooting solver would hit
    for method in [Method::default(), Method::Rk4 { steps: 7 }, Method::Euler { steps: 7 }] {
        for [start, end] in [[1.0f64, 1e-3], [1e-3, 1.0], [0.1, 0.7]] {
            let (low, high) = (start.min(end), start.max(end));
            let mut times = Vec::new();
            let mut x = [0.7];
            integrate(&method, [start, end], 1, &mut x, &mut [], &mut |stage: Stage| {
                assert!(stage.rate.is_empty());
                times.extend_from_slice(stage.t);
                stage.dx[0] = (stage.x[0] - 0.3) / stage.t[0];
            });
            assert!(times.iter().all(|t| (low..=high).contains(t)), "{method:?}: {times:?}");
            if method == Method::default() {
                assert!(times.contains(&end), "{method:?} ended at {:?}", times.last());
                assert!((x[0] - 0.3 - 0.4 * end / start).abs() < 1e-4, "{x:?}");
            }
        }
    }
}

#[test]
fn a_sample_does_not_depend_on_its_neighbours() {
    const PACE: [f64; 5] = [1.0, 30.0, 0.01, 3.0, 1.0];
    let start = [0.8, -0.3, 1.0, 2.0, 0.1, 0.0, -5.0, 0.2, 0.8, -0.3];
    let by_quadrature =
        Method::DormandPrince { absolute: 1e-5, relative: 1e-5, log_density: 1e-4, quadrature: 3, max_steps: 1000 };
    for method in [Method::default(), by_quadrature, Method::Rk4 { steps: 9 }] {
        let (mut x, mut integral) = (start.to_vec(), vec![0.0; 5]);
        let together = integrate(&method, [1.0, 0.1], 2, &mut x, &mut integral, &mut spiral(&PACE));
        for row in 0..5 {
            let (mut alone, mut its) = (start[2 * row..][..2].to_vec(), vec![0.0]);
            let report = integrate(&method, [1.0, 0.1], 2, &mut alone, &mut its, &mut spiral(&PACE[row..][..1]));
            assert_eq!((&alone[..], its[0]), (&x[2 * row..][..2], integral[row]), "row {row}");
            assert_eq!(report[0], together[row]);
        }
        assert_eq!(x[..2], x[8..]);
    }
}

#[test]
fn every_failure_has_its_name_and_stops_its_sample_only() {
    let mut derivative = |stage: Stage| {
        for (i, &row) in stage.rows.iter().enumerate() {
            let (t, x) = (stage.t[i], stage.x[i]);
            stage.dx[i] = match row {
                0 => -x,
                1 if t > 0.4 => f64::NAN,
                1 => 1.0,
                // explodes at t = 1/2
                2 => x * x,
                _ => 1e4 * (1e5 * t).sin(),
            };
        }
    };
    let mut x = [1.0, 1.0, 2.0, 0.0];
    let method =
        Method::DormandPrince { absolute: 1e-8, relative: 1e-8, log_density: 1.0, quadrature: 0, max_steps: 3000 };
    let reports = integrate(&method, [0.0, 1.0], 1, &mut x, &mut [], &mut derivative);
    let ends: Vec<End> = reports.iter().map(|r| r.end).collect();
    assert_eq!((ends[0], ends[1], ends[3]), (End::Done, End::NonFinite, End::StepBudget));
    assert!(matches!(ends[2], End::StepUnderflow | End::NonFinite), "{:?}", ends[2]);
    assert!((x[0] - (-1f64).exp()).abs() < 1e-7);
    let mut x = [f64::NAN];
    let report = integrate(&Method::Rk4 { steps: 2 }, [0.0, 1.0], 1, &mut x, &mut [], &mut |s: Stage| {
        s.dx.copy_from_slice(s.x);
    });
    assert_eq!(report[0], Report { evaluations: 8, accepted: 2, rejected: 0, end: End::NonFinite });
}

#[test]
fn senseless_settings_are_refused_and_defaults_may_be_left_out() {
    let parse = |text: &str| serde_json::from_str::<Method>(text);
    assert_eq!(parse(r#"{"kind": "dormand_prince"}"#).unwrap(), Method::default());
    assert_eq!(parse(r#"{"kind": "rk4", "steps": 20}"#).unwrap(), Method::Rk4 { steps: 20 });
    assert!(parse(r#"{"kind": "rk4", "steps": 20, "stpes": 3}"#).is_err());
    Method::default().check().unwrap();
    for bad in [
        r#"{"kind": "euler", "steps": 0}"#,
        r#"{"kind": "dormand_prince", "log_density": 0.0}"#,
        r#"{"kind": "dormand_prince", "quadrature": 4}"#,
    ] {
        assert!(parse(bad).unwrap().check().is_err(), "{bad}");
    }
}
