"""Pictures: shapes, and exact colours where they are known."""

import numpy as np
import pytest

from mrfomm.reenactment import pictures as visualize

WHITE = [255, 255, 255]


def plain(colour, height=6, width=9):
    """A picture of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def planes(colour, height=16, width=20):
    """The same as float planes [3,H,W] in [0,1]."""
    return np.broadcast_to(np.float32(colour)[:, None, None] / 255, (3, height, width))


def is_picture(array, height, width):
    return array.dtype == np.uint8 and array.shape == (height, width, 3)


def test_picture_of_a_colour_image():
    array = np.zeros((3, 2, 4), np.float32)
    array[:, 0, 1] = 0.2, 0.4, 1.0
    array[:, 1, 3] = 1
    result = visualize.picture(array)
    assert is_picture(result, 2, 4)
    np.testing.assert_array_equal(result[0, 1], [51, 102, 255])
    np.testing.assert_array_equal(result[1, 3], WHITE)
    assert not result[0, 0].any()


def test_picture_of_a_map_is_grey():
    result = visualize.picture(np.float32([[[0, 0.2, 0.6, 1]]]))
    assert is_picture(result, 1, 4)
    np.testing.assert_array_equal(result[0], [[0] * 3, [51] * 3, [153] * 3, WHITE])


def test_picture_clips_instead_of_wrapping_around():
    result = visualize.picture(np.float32([[[-0.1, 1.1]]]))
    np.testing.assert_array_equal(result[0], [[0] * 3, WHITE])


def test_picture_restores_every_byte():
    values = np.arange(256, dtype=np.float32).reshape(1, 16, 16) / 255
    np.testing.assert_array_equal(visualize.picture(values)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("count", [1, 10, 15])
def test_keypoint_colours_are_distinct_bytes(count):
    colours = visualize.keypoint_colours(count)
    assert len({tuple(colour) for colour in colours}) == count
    assert all(len(colour) == 3 and all(0 <= c <= 255 and int(c) == c for c in colour) for colour in colours)


def test_keypoints_are_drawn_in_their_colours_at_their_places():
    image = plain([0, 0, 0], 65, 129)
    points = np.float32([[-0.5, -0.5], [0, 0], [0.75, 0.5], [1, -1]])
    result = visualize.draw_keypoints(image, points)
    assert is_picture(result, 65, 129)
    for (row, column), colour in zip([(16, 32), (32, 64), (48, 112), (0, 128)], visualize.keypoint_colours(4)):
        np.testing.assert_array_equal(result[row, column], colour)
    assert not image.any()  # drawn on a copy
    assert (result.any(-1)).mean() < 0.1


def test_keypoints_outside_the_picture_are_no_error():
    result = visualize.draw_keypoints(plain([0, 0, 0], 33, 33), np.float32([[3, 0], [-2, -2]]))
    assert not result.any()


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_tile(gap):
    red, green, blue = plain([255, 0, 0]), plain([0, 255, 0]), plain([0, 0, 255])
    sheet = visualize.tile([[red, green, blue], [green]], gap)
    assert is_picture(sheet, 2 * 6 + gap, 3 * 9 + 2 * gap)
    wanted = np.full(sheet.shape, 255, np.uint8)
    for picture, row, column in ((red, 0, 0), (green, 0, 1), (blue, 0, 2), (green, 1, 0)):
        top, left = row * (6 + gap), column * (9 + gap)
        wanted[top : top + 6, left : left + 9] = picture
    np.testing.assert_array_equal(sheet, wanted)


@pytest.mark.parametrize("channels", [1, 4])
def test_training_row(channels):
    """Two references, whose masks are 0.2 and 0.8 and whose occlusion maps are 0.4 and 1."""
    references = np.stack([planes([255, 0, 0]), planes([0, 255, 0])])
    mask = np.float32([0.2, 0.8]).reshape(2, 1, 1, 1).repeat(channels, 1).repeat(4, 2).repeat(5, 3)
    if channels > 1:  # an element-wise mask is shown by its mean over the channels
        mask = mask + np.float32([0.1, -0.1, 0.05, -0.05])[:, None, None]
    occlusion = np.float32([0.4, 1]).reshape(2, 1, 1, 1).repeat(4, 2).repeat(5, 3)
    centre = np.zeros((2, 1, 2), np.float32)
    row = visualize.training_row(
        references, planes([0, 0, 255]), planes([51, 102, 153]), occlusion, mask, centre, centre[0]
    )
    assert len(row) == 2 + 1 + 1 + 2 * 2
    assert all(is_picture(picture, 16, 20) for picture in row)
    inputs, masks, occlusions = [[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[51] * 3, [204] * 3], [[102] * 3, WHITE]
    for picture, colour in zip(row, [*inputs, [51, 102, 153], *masks, *occlusions]):
        np.testing.assert_array_equal(picture[-1, -1], colour)
    (keypoint,) = visualize.keypoint_colours(1)
    for picture in row[:3]:
        assert (picture == keypoint).all(-1).any()
    np.testing.assert_array_equal(row[3], plain([51, 102, 153], 16, 20))


def test_breakdown_picture():
    references = np.stack([planes([255, 0, 0]), planes([0, 255, 0]), planes([0, 0, 255])])
    warped = np.stack([planes([255, 255, 0]), planes([0, 255, 255]), planes([255, 0, 255])])
    mask = np.float32([0.2, 0.8, 0]).reshape(3, 1, 1, 1).repeat(16, 2).repeat(20, 3)
    sheet = visualize.breakdown_picture(references, warped, mask, planes([51, 102, 153]))
    assert is_picture(sheet, 3 * 16 + 2 * 2, 5 * 20 + 4 * 2)
    colours = [
        [[255, 0, 0], [255, 255, 0], [51] * 3, [51, 51, 0], WHITE],
        [[0, 255, 0], [0, 255, 255], [204] * 3, [0, 204, 204], WHITE],
        [[0, 0, 255], [255, 0, 255], [0] * 3, [0] * 3, [51, 102, 153]],
    ]
    np.testing.assert_array_equal(sheet, visualize.tile([[plain(c, 16, 20) for c in row] for row in colours]))
