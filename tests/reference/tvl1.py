"""TV-L1 flow of one pair and scale, one pixel at a time, in float64; after opencv_contrib 2a5154a, tvl1flow.cpp."""

import math

import numpy as np


def forward_gradient(u: np.ndarray, y: int, x: int) -> tuple[float, float]:
    """(along x, along y); 0 at the last column and the last row."""
    height, width = u.shape
    return (u[y, x + 1] - u[y, x] if x + 1 < width else 0.0), (u[y + 1, x] - u[y, x] if y + 1 < height else 0.0)


def divergence(p: np.ndarray, y: int, x: int) -> float:
    """Of p [2 (x, y), H, W], which is 0 before the first column and row."""
    return p[0, y, x] - (p[0, y, x - 1] if x else 0.0) + p[1, y, x] - (p[1, y - 1, x] if y else 0.0)


def central_gradient(image: np.ndarray) -> np.ndarray:
    """[2 (x, y), H, W]; a neighbour outside is the pixel itself."""
    height, width = image.shape
    result = np.zeros((2, height, width))
    for y in range(height):
        for x in range(width):
            result[0, y, x] = (image[y, min(x + 1, width - 1)] - image[y, max(x - 1, 0)]) / 2
            result[1, y, x] = (image[min(y + 1, height - 1), x] - image[max(y - 1, 0), x]) / 2
    return result


def cubic_kernel(distance: float, a: float = -0.75) -> float:
    """Keys 1981, equation 4, with another a."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def sample_cubic(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """image [H, W] at every pixel plus field [2 (x, y), H, W]; 0 outside."""
    height, width = image.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            at_x, at_y = x + field[0, y, x], y + field[1, y, x]
            for row in range(height):
                for column in range(width):
                    result[y, x] += cubic_kernel(row - at_y) * cubic_kernel(column - at_x) * image[row, column]
    return result


def median_5x5(image: np.ndarray) -> np.ndarray:
    """The border repeated."""
    height, width = image.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            window = [image[min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)]
                      for i in range(-2, 3) for j in range(-2, 3)]
            result[y, x] = sorted(window)[12]
    return result


def iterate(data: dict, field: np.ndarray, dual: np.ndarray, tau=0.25, lam=0.15, theta=0.3) -> tuple:
    """One iteration: data term by thresholding, the field, then its dual variable [2 (component), 2 (x, y), H, W]."""
    _, height, width = field.shape
    new, new_dual, grad, limit = np.zeros_like(field), np.zeros_like(dual), data["grad"], lam * theta
    for y in range(height):
        for x in range(width):
            gx, gy = grad[:, y, x]
            square = gx**2 + gy**2
            residual = data["constant"][y, x] + gx * field[0, y, x] + gy * field[1, y, x]
            if residual < -limit * square:
                factor = limit
            elif residual > limit * square:
                factor = -limit
            else:
                factor = -residual / square if square > np.finfo(np.float32).eps else 0.0
            for c, g in enumerate((gx, gy)):
                new[c, y, x] = field[c, y, x] + factor * g + theta * divergence(dual[c], y, x)
    for c in range(2):
        for y in range(height):
            for x in range(width):
                dx, dy = forward_gradient(new[c], y, x)
                shrink = 1 + tau / theta * math.hypot(dx, dy)
                new_dual[c, 0, y, x] = (dual[c, 0, y, x] + tau / theta * dx) / shrink
                new_dual[c, 1, y, x] = (dual[c, 1, y, x] + tau / theta * dy) / shrink
    return new, new_dual, float(((new - field) ** 2).sum())


def solve_scale(before: np.ndarray, after: np.ndarray, field: np.ndarray, warps=5, outer=10, inner=30, eps=0.01):
    """The field [2, H, W] after all warps of one scale, with the numbers of iterations of each."""
    field, dual, counts = field.astype(np.float64), np.zeros((2, 2, *before.shape)), []
    slope = central_gradient(after)
    for _ in range(warps):
        grad = np.stack([sample_cubic(part, field) for part in slope])
        data = {"grad": grad, "constant": sample_cubic(after, field) - (grad * field).sum(0) - before}
        change, count = math.inf, 0
        for _ in range(outer):
            if change <= eps**2 * before.size:
                break
            field = np.stack([median_5x5(component) for component in field])
            for _ in range(inner):
                if change <= eps**2 * before.size:
                    break
                field, dual, change = iterate(data, field, dual)
                count += 1
        counts.append(count)
    return field, counts
