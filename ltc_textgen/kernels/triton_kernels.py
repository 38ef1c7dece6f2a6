# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Device code of the diagonal scan (see `triton_scan` for what it computes and how it is called).

A program computes BLOCK neurons of one sequence, token by token, with the neurons' parameters, the state and, in the
backward pass, the gradients of the parameters in registers. The backward pass recomputes the sub-steps of each token
from the state before it, which the forward pass has stored: nothing else is kept.

The mathematics of a sub-step is that of `solvers`; its vector-Jacobian products (`*_vjp`) are derived by hand. Letters:
d drive, r feedback, e reversal potential, c capacitance, f open fraction of a synapse; a suffix e or i names the
synapse, a prefix g a gradient, so `gde` is the gradient of the excitatory drive.
"""

import triton
import triton.language as tl

# As `library.SOLVER_CODES`.
SEMI_IMPLICIT = tl.constexpr(0)
EXPLICIT = tl.constexpr(1)
RUNGE_KUTTA = tl.constexpr(2)
EXPONENTIAL = tl.constexpr(3)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), by an exponential of -|x|, which cannot overflow."""
    z = tl.exp(-tl.abs(x))
    scaled = 1 / (1 + z)
    return tl.where(x >= 0, scaled, z * scaled)


@triton.jit
def membrane(x, de, di, re, ri, ee, ei, leak, ADAPTIVE: tl.constexpr):
    """Open fractions f_e and f_i, total conductance G and current I."""
    fe = sigmoid(de + re * x)
    fi = sigmoid(di + ri * x)
    conductance = leak
    if ADAPTIVE:
        conductance = leak + fe + fi
    return fe, fi, conductance, fe * ee - fi * ei


@triton.jit
def membrane_vjp(x, g_conductance, g_current, de, di, re, ri, ee, ei, leak, ADAPTIVE: tl.constexpr):
    """Gradients of x, d_e, d_i, E_e and E_i from those of G and I. That of the leak is the gradient of G itself."""
    fe, fi, _, _ = membrane(x, de, di, re, ri, ee, ei, leak, ADAPTIVE)
    gfe = g_current * ee
    gfi = -g_current * ei
    if ADAPTIVE:
        gfe += g_conductance
        gfi += g_conductance
    gde = gfe * fe * (1 - fe)
    gdi = gfi * fi * (1 - fi)
    return re * gde + ri * gdi, gde, gdi, g_current * fe, -g_current * fi


@triton.jit
def exponential_gain(rate):
    """phi(q) = (1 - e^-q) / q and its derivative; below q = 1/4, where they cancel, by their series."""
    safe = tl.maximum(rate, 0.25)
    decay = tl.exp(-safe)
    direct = (1 - decay) / safe
    direct_slope = (decay - direct) / safe
    near = tl.minimum(rate, 0.25)
    series = tl.zeros_like(rate) + 1
    series_slope = tl.zeros_like(rate)
    for i in tl.static_range(13):  # Horner's rule: phi = 1 - q/2 (1 - q/3 (1 - q/4 (...)))
        series_slope = -(series + near * series_slope) / (14 - i)
        series = 1 - near * series / (14 - i)
    small = rate < 0.25
    return tl.where(small, series, direct), tl.where(small, series_slope, direct_slope)


@triton.jit
def slope(x, de, di, re, ri, ee, ei, c, leak, ADAPTIVE: tl.constexpr):
    """dx/dt = (I - G x) / C."""
    _, _, conductance, current = membrane(x, de, di, re, ri, ee, ei, leak, ADAPTIVE)
    return (current - conductance * x) / c


@triton.jit
def advance(x, h, de, di, re, ri, ee, ei, c, leak, SOLVER: tl.constexpr, ADAPTIVE: tl.constexpr):
    """One sub-step. An h of zero keeps x to the bit, whatever the rounding of the device's division."""
    if SOLVER == RUNGE_KUTTA:
        k1 = slope(x, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
        k2 = slope(x + h / 2 * k1, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
        k3 = slope(x + h / 2 * k2, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
        k4 = slope(x + h * k3, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
        new = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    else:
        _, _, conductance, current = membrane(x, de, di, re, ri, ee, ei, leak, ADAPTIVE)
        if SOLVER == SEMI_IMPLICIT:
            total = c + h * conductance
            new = x * (c / total) + current * (h / total)
        elif SOLVER == EXPONENTIAL:
            scale = h / c
            gain, _ = exponential_gain(conductance * scale)
            new = x * tl.exp(-conductance * scale) + current * scale * gain
        else:
            new = x + h / c * (current - conductance * x)
    return tl.where(h > 0, new, x)


@triton.jit
def single_stage_vjp(x, g, h, de, di, re, ri, ee, ei, c, leak, SOLVER: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Gradients of a sub-step that evaluates the membrane once: direct part of x, and G, I, C and h."""
    _, _, conductance, current = membrane(x, de, di, re, ri, ee, ei, leak, ADAPTIVE)
    if SOLVER == SEMI_IMPLICIT:
        total = c + h * conductance
        new = x * (c / total) + current * (h / total)
        scaled = g / total
        gx, g_current, g_conductance = scaled * c, scaled * h, -scaled * h * new
        gc, gh = scaled * (x - new), scaled * (current - conductance * new)
    else:
        scale = h / c
        if SOLVER == EXPONENTIAL:
            decay = tl.exp(-conductance * scale)
            rate = conductance * scale
            gain, gain_slope = exponential_gain(rate)
            # phi' falls below the smallest float for long steps while scale phi' does not: there, (e^-q - phi) / G.
            far = tl.where(rate < 0.25, 1.0, conductance)
            gain_slope = tl.where(rate < 0.25, scale * gain_slope, (decay - gain) / far)
            g_rate = g * (current * gain_slope - x * decay)
            gx, g_current, g_conductance = g * decay, g * scale * gain, g_rate * scale
            g_scale = g * current * gain + g_rate * conductance
        else:
            gx, g_current, g_conductance = g * (1 - scale * conductance), g * scale, -g * scale * x
            g_scale = g * (current - conductance * x)
        gc, gh = -g_scale * scale / c, g_scale / c
    return gx, g_conductance, g_current, gc, gh


@triton.jit
def stage_vjp(x, gk, de, di, re, ri, ee, ei, c, leak, ADAPTIVE: tl.constexpr):
    """Gradients of `slope`: x, d_e, d_i, r_e, r_i, E_e, E_i, C, leak."""
    _, _, conductance, current = membrane(x, de, di, re, ri, ee, ei, leak, ADAPTIVE)
    scaled = gk / c
    gx, gde, gdi, gee, gei = membrane_vjp(x, -scaled * x, scaled, de, di, re, ri, ee, ei, leak, ADAPTIVE)
    gc = -scaled * (current - conductance * x) / c
    return gx - scaled * conductance, gde, gdi, gde * x, gdi * x, gee, gei, gc, -scaled * x


@triton.jit
def runge_kutta_vjp(x, g, h, de, di, re, ri, ee, ei, c, leak, ADAPTIVE: tl.constexpr):
    """Gradients of a Runge-Kutta sub-step: x, d_e, d_i, r_e, r_i, E_e, E_i, C, leak, h."""
    k1 = slope(x, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
    x2 = x + h / 2 * k1
    k2 = slope(x2, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
    x3 = x + h / 2 * k2
    k3 = slope(x3, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
    x4 = x + h * k3
    k4 = slope(x4, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
    gx4, de4, di4, re4, ri4, ee4, ei4, c4, l4 = stage_vjp(x4, g * h / 6, de, di, re, ri, ee, ei, c, leak, ADAPTIVE)
    gx3, de3, di3, re3, ri3, ee3, ei3, c3, l3 = stage_vjp(
        x3, g * h / 3 + h * gx4, de, di, re, ri, ee, ei, c, leak, ADAPTIVE
    )
    gx2, de2, di2, re2, ri2, ee2, ei2, c2, l2 = stage_vjp(
        x2, g * h / 3 + h / 2 * gx3, de, di, re, ri, ee, ei, c, leak, ADAPTIVE
    )
    gx1, de1, di1, re1, ri1, ee1, ei1, c1, l1 = stage_vjp(
        x, g * h / 6 + h / 2 * gx2, de, di, re, ri, ee, ei, c, leak, ADAPTIVE
    )
    gh = g * (k1 + 2 * k2 + 2 * k3 + k4) / 6 + gx4 * k3 + (gx3 * k2 + gx2 * k1) / 2
    return (
        g + gx1 + gx2 + gx3 + gx4,
        de1 + de2 + de3 + de4,
        di1 + di2 + di3 + di4,
        re1 + re2 + re3 + re4,
        ri1 + ri2 + ri3 + ri4,
        ee1 + ee2 + ee3 + ee4,
        ei1 + ei2 + ei3 + ei4,
        c1 + c2 + c3 + c4,
        l1 + l2 + l3 + l4,
        gh,
    )


@triton.jit
def substep_vjp(x, g, h, de, di, re, ri, ee, ei, c, leak, SOLVER: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Gradients of a sub-step: x, d_e, d_i, r_e, r_i, E_e, E_i, C, leak, h."""
    if SOLVER == RUNGE_KUTTA:
        gx, gde, gdi, gre, gri, gee, gei, gc, gl, gh = runge_kutta_vjp(
            x, g, h, de, di, re, ri, ee, ei, c, leak, ADAPTIVE
        )
    else:
        direct, gl, g_current, gc, gh = single_stage_vjp(x, g, h, de, di, re, ri, ee, ei, c, leak, SOLVER, ADAPTIVE)
        through, gde, gdi, gee, gei = membrane_vjp(x, gl, g_current, de, di, re, ri, ee, ei, leak, ADAPTIVE)
        gx, gre, gri = direct + through, gde * x, gdi * x
    return gx, gde, gdi, gre, gri, gee, gei, gc, gl, gh


@triton.jit
def load_neurons(feedback, reversal, capacitance, leak, n, inside, N):
    """Parameters of a program's neurons; entries past the last one hold a harmless neuron."""
    return (
        tl.load(feedback + n, mask=inside, other=0.0),
        tl.load(feedback + N + n, mask=inside, other=0.0),
        tl.load(reversal + n, mask=inside, other=0.0),
        tl.load(reversal + N + n, mask=inside, other=0.0),
        tl.load(capacitance + n, mask=inside, other=1.0),
        tl.load(leak + n, mask=inside, other=1.0),
    )


@triton.jit
def forward(
    drive, x0, dt, feedback, reversal, capacitance, leak, states, T, N,
    STEPS: tl.constexpr, SOLVER: tl.constexpr, ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """States of all tokens, one program per sequence and block of neurons."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    re, ri, ee, ei, c, gl = load_neurons(feedback, reversal, capacitance, leak, n, inside, N)
    x = tl.load(x0 + b * N + n, mask=inside, other=0.0)
    token = b * T
    h = tl.load(dt + token)
    de = tl.load(drive + token * 2 * N + n, mask=inside, other=0.0)
    di = tl.load(drive + token * 2 * N + N + n, mask=inside, other=0.0)
    for _token in range(T):
        # The next token is fetched before this one is worked on: its latency hides behind the sub-steps.
        follows = token + 1 < (b + 1) * T
        fetch = n < tl.where(follows, N, 0)
        after = (token + 1) * 2 * N
        next_h = tl.load(dt + token + 1, mask=follows, other=0.0)
        next_de = tl.load(drive + after + n, mask=fetch, other=0.0)
        next_di = tl.load(drive + after + N + n, mask=fetch, other=0.0)
        for _step in range(STEPS):
            x = advance(x, h, de, di, re, ri, ee, ei, c, gl, SOLVER, ADAPTIVE)
        tl.store(states + token * N + n, x, mask=inside)
        token += 1
        h, de, di = next_h, next_de, next_di


@triton.jit
def backward(
    drive, x0, dt, feedback, reversal, capacitance, leak, states, grad_states,
    grad_drive, grad_x0, grad_dt, grad_neurons, scratch, T, N,
    STEPS: tl.constexpr, SOLVER: tl.constexpr, ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of all inputs; those of dt per block of neurons, those of the parameters per sequence."""
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    n = block * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    re, ri, ee, ei, c, gl = load_neurons(feedback, reversal, capacitance, leak, n, inside, N)
    start = tl.load(x0 + b * N + n, mask=inside, other=0.0)
    g = tl.zeros_like(start)
    sum_re, sum_ri, sum_ee, sum_ei, sum_c, sum_l = g, g, g, g, g, g
    within = scratch + b * STEPS * N + n
    for back in range(T):
        token = b * T + (T - 1 - back)
        h = tl.load(dt + token)
        de = tl.load(drive + token * 2 * N + n, mask=inside, other=0.0)
        di = tl.load(drive + token * 2 * N + N + n, mask=inside, other=0.0)
        g += tl.load(grad_states + token * N + n, mask=inside, other=0.0)
        earlier = token > b * T
        previous = tl.load(states + (token - 1) * N + n, mask=n < tl.where(earlier, N, 0), other=0.0)
        x = tl.where(earlier, previous, start)
        for k in range(STEPS):
            tl.store(within + k * N, x, mask=inside)
            if k + 1 < STEPS:
                x = advance(x, h, de, di, re, ri, ee, ei, c, gl, SOLVER, ADAPTIVE)
        tl.debug_barrier()  # what one thread stored, another may load
        sum_de, sum_di, sum_h = tl.zeros_like(g), tl.zeros_like(g), tl.zeros_like(g)
        for k in range(STEPS):
            x = tl.load(within + (STEPS - 1 - k) * N, mask=inside, other=0.0)
            g, gde, gdi, gre, gri, gee, gei, gc, gleak, gh = substep_vjp(
                x, g, h, de, di, re, ri, ee, ei, c, gl, SOLVER, ADAPTIVE
            )
            sum_de, sum_di, sum_h = sum_de + gde, sum_di + gdi, sum_h + gh
            sum_re, sum_ri, sum_ee, sum_ei = sum_re + gre, sum_ri + gri, sum_ee + gee, sum_ei + gei
            sum_c, sum_l = sum_c + gc, sum_l + gleak
        tl.debug_barrier()
        tl.store(grad_drive + token * 2 * N + n, sum_de, mask=inside)
        tl.store(grad_drive + token * 2 * N + N + n, sum_di, mask=inside)
        tl.store(grad_dt + token * tl.num_programs(1) + block, tl.sum(tl.where(inside, sum_h, 0.0), axis=0))
    tl.store(grad_x0 + b * N + n, g, mask=inside)
    row = grad_neurons + b * 6 * N + n
    tl.store(row, sum_re, mask=inside)
    tl.store(row + N, sum_ri, mask=inside)
    tl.store(row + 2 * N, sum_ee, mask=inside)
    tl.store(row + 3 * N, sum_ei, mask=inside)
    tl.store(row + 4 * N, sum_c, mask=inside)
    tl.store(row + 5 * N, sum_l, mask=inside)
